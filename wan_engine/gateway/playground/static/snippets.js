// The form's request as code, for each API in each language. Pure text: `python`, `node` and `sh`
// run it as it is, with a key in place of YOUR_API_KEY.
//
// Each API has defaults of its own, so every option is said; files are read by the code itself.

const KEY = "YOUR_API_KEY";
const PLACEHOLDER = "https://example.com/picture.jpg";
const FIRST_PROMPT = "A person walking through a sunny park, leaves gently swaying";

/** A file in a request: the code reads it. */
class LocalFile {
  constructor({ file, type }) {
    this.name = file.name;
    this.type = type;
  }
}

/**
 * @param api "runpod", "aiml" or "oxen"
 * @param language "curl", "python" or "javascript"
 * @param wish `{base, endpoint, keyed, options, media}`: the options by the contract's names, the
 *   media by theirs as their pickers have them; `base` without a slash at its end; `keyed` where
 *   the server asks for a key
 */
export function snippet(api, language, wish) {
  const { image, last_image, first_clip, references, audio } = wish.media;
  const body = BODIES[api]({
    ...wish.options,
    prompt: wish.options.prompt.trim() ? wish.options.prompt : FIRST_PROMPT,
    image: references || first_clip ? undefined : source(image) ?? PLACEHOLDER,
    last_image: source(last_image),
    first_clip: source(first_clip),
    references: references?.map(source),
    audio: source(audio),
  });
  return WRITERS[language][api](wish, body).trimStart();
}

const source = (media) => media?.url ?? (media?.file ? new LocalFile(media) : undefined);

// --- the requests --------------------------------------------------------------------------------

const BODIES = {
  runpod: (wish) => ({
    input: given({
      prompt: wish.prompt,
      image: wish.image,
      last_image: wish.last_image,
      first_clip: wish.first_clip,
      keep_first_clip: wish.keep_first_clip,
      references: wish.references,
      audio: wish.audio,
      negative_prompt: text(wish.negative_prompt),
      size: wish.size,
      aspect_ratio: wish.aspect_ratio,
      duration: wish.duration,
      shot_type: wish.shot_type,
      seed: wish.seed,
      enable_prompt_expansion: wish.enable_prompt_expansion,
      enable_safety_checker: wish.enable_safety_checker,
      generate_audio: wish.generate_audio,
    }),
  }),
  aiml: (wish) =>
    given({
      model: wish.references ? "alibaba/wan-2-6-r2v" : "alibaba/wan-2-6-i2v",
      prompt: wish.prompt,
      image_url: wish.image,
      last_image_url: wish.last_image,
      video_urls: wish.references,
      audio_url: wish.references ? undefined : wish.audio,
      resolution: resolution(wish),
      aspect_ratio: wish.aspect_ratio,
      duration: wish.duration,
      negative_prompt: text(wish.negative_prompt),
      shot_type: wish.shot_type,
      seed: fixed(wish.seed),
      enhance_prompt: wish.enable_prompt_expansion,
      generate_audio: wish.generate_audio,
    }),
  oxen: (wish) =>
    given({
      model: wish.references ? "wan-v2-6-reference-to-video" : "wan-v2-6-image-to-video",
      prompt: wish.prompt,
      input_image: wish.image,
      last_image: wish.last_image,
      input_videos: wish.references,
      duration: wish.duration,
      audio_url: wish.references ? undefined : wish.audio,
      resolution: resolution(wish),
      aspect_ratio: wish.aspect_ratio,
      negative_prompt: text(wish.negative_prompt),
      seed: fixed(wish.seed),
      multi_shots: wish.shot_type === "multi",
      enable_prompt_expansion: wish.enable_prompt_expansion,
      enable_safety_checker: wish.enable_safety_checker,
      generate_audio: wish.generate_audio,
    }),
};

const given = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
const text = (value) => (value.trim() ? value : undefined);
const fixed = (seed) => (seed >= 0 ? seed : undefined);
const resolution = ({ size }) => (size === "1920*1080" ? "1080p" : "720p");

// --- a value in each language --------------------------------------------------------------------

/** `value` over several lines. `leaf(value)` writes what is no object, `name(key)` a key. */
function written(value, indent, { leaf, name, step, trailing }) {
  if (value === null || typeof value !== "object" || value instanceof LocalFile) return leaf(value);
  const inner = indent + step;
  const list = Array.isArray(value);
  const [open, close] = list ? "[]" : "{}";
  if (list && !value.length) return "[]";
  const rows = Object.entries(value).map(
    ([key, one]) => `${inner}${list ? "" : `${name(key)}: `}${written(one, inner, { leaf, name, step, trailing })}`,
  );
  return `${open}\n${rows.join(",\n")}${trailing}\n${indent}${close}`;
}

const inPython = (value) =>
  written(value, "", { leaf: pythonLeaf, name: JSON.stringify, step: "    ", trailing: "," });

function pythonLeaf(value) {
  if (value instanceof LocalFile) return `data_uri(${JSON.stringify(value.name)}, "${value.type}")`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

const inJavaScript = (value) =>
  written(value, "", { leaf: javaScriptLeaf, name: (key) => key, step: "  ", trailing: "," });

const javaScriptLeaf = (value) =>
  value instanceof LocalFile
    ? `await dataUri(${JSON.stringify(value.name)}, "${value.type}")`
    : JSON.stringify(value);

/** The body on curl's standard input, which has no limit of length as an argument has. */
function hereDocument(body) {
  const files = hasFile(body);
  const escaped = (json) => (files ? json.replace(/[\\$`]/g, "\\$&") : json);
  const leaf = (value) =>
    value instanceof LocalFile
      ? `"data:${value.type};base64,$(base64 < ${inShell(value.name)} | tr -d '\\n')"`
      : escaped(JSON.stringify(value));
  const json = written(body, "", { leaf, name: JSON.stringify, step: "  ", trailing: "" });
  return `<<${files ? "JSON" : "'JSON'"}\n${json}\nJSON`;
}

const inShell = (value) => `'${value.replaceAll("'", "'\\''")}'`;

const hasFile = (value) =>
  value instanceof LocalFile || (typeof value === "object" && value !== null && Object.values(value).some(hasFile));

// --- curl ----------------------------------------------------------------------------------------

const bearer = (keyed) => (keyed ? `\n  -H 'Authorization: Bearer ${KEY}' \\` : "");

const curl = (url, keyed, body, more = "") => `curl -sS ${inShell(url)} \\${bearer(keyed)}
  -H 'Content-Type: application/json' \\
  ${more}--data-binary @- ${hereDocument(body)}
`;

const SHELL = {
  runpod: ({ base, endpoint, keyed }, body) =>
    `# Waits up to 300 s; a longer job is then asked for at
# ${base}/v2/${endpoint}/status/ID
${curl(`${base}/v2/${endpoint}/runsync`, keyed, body)}`,
  aiml: ({ base, keyed }, body) => `${curl(`${base}/v2/video/generations`, keyed, body, "-o answer.json ")}
while jq -e '.status == "queued" or .status == "generating"' answer.json > /dev/null; do
  sleep 2
  curl -sS "${base}/v2/video/generations?generation_id=$(jq -r .id answer.json)" \\${bearer(keyed)}
    -o answer.json
done
jq . answer.json
`,
  oxen: ({ base, keyed }, body) => `# Answers when the video is finished
${curl(`${base}/api/ai/videos/generate`, keyed, body)}`,
};

// --- Python --------------------------------------------------------------------------------------

function python(keyed, body, lines) {
  const files = hasFile(body);
  const reader = `

def data_uri(path, kind):
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"
`;
  return `${files ? "import base64\n" : ""}import time

import requests

HEADERS = {${keyed ? `"Authorization": "Bearer ${KEY}"` : ""}}


def ask(method, url, **options):
    answer = requests.request(method, url, headers=HEADERS, timeout=60, **options)
    if not answer.ok:
        raise SystemExit(answer.text)
    return answer.json()
${files ? reader : ""}

request = ${inPython(body)}
${lines}`;
}

const PYTHON = {
  runpod: ({ base, endpoint, keyed }, body) =>
    python(
      keyed,
      body,
      `url = ${JSON.stringify(`${base}/v2/${endpoint}`)}
job = ask("POST", f"{url}/run", json=request)
while job["status"] in ("IN_QUEUE", "IN_PROGRESS"):
    time.sleep(2)
    job = ask("GET", f"{url}/status/{job['id']}")
if job["status"] != "COMPLETED":
    raise SystemExit(job.get("error", job["status"]))
print(job["output"]["video_url"])
`,
    ),
  aiml: ({ base, keyed }, body) =>
    python(
      keyed,
      body,
      `url = ${JSON.stringify(`${base}/v2/video/generations`)}
video = ask("POST", url, json=request)
while video["status"] in ("queued", "generating"):
    time.sleep(2)
    video = ask("GET", url, params={"generation_id": video["id"]})
if video["status"] != "completed":
    raise SystemExit(video["error"]["message"])
print(video["video"]["url"])
`,
    ),
  oxen: ({ base, keyed }, body) =>
    python(
      keyed,
      body,
      `url = ${JSON.stringify(`${base}/api/ai/queue`)}
video = ask("POST", url, json=request)["generations"][0]
while video["status"] in ("queued", "processing"):
    time.sleep(2)
    video = ask("GET", f"{url}/{video['generation_id']}")
if video["status"] != "succeeded":
    raise SystemExit(video["error_message"] or video["status"])
print(video["result_url"])
`,
    ),
};

// --- JavaScript ----------------------------------------------------------------------------------

function javaScript(keyed, body, lines) {
  const files = hasFile(body);
  const reader = `
async function dataUri(path, kind) {
  return \`data:\${kind};base64,\${await readFile(path, "base64")}\`;
}
`;
  return `${files ? 'import { readFile } from "node:fs/promises";\n\n' : ""}const headers = {${keyed ? `\n  Authorization: "Bearer ${KEY}",` : ""}
  "Content-Type": "application/json",
};

async function ask(url, options = {}) {
  const answer = await fetch(url, { headers, ...options });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

const pause = () => new Promise((done) => setTimeout(done, 2000));
${files ? reader : ""}
const request = ${inJavaScript(body)};
${lines}`;
}

const post = '{ method: "POST", body: JSON.stringify(request) }';

const JAVASCRIPT = {
  runpod: ({ base, endpoint, keyed }, body) =>
    javaScript(
      keyed,
      body,
      `const url = ${JSON.stringify(`${base}/v2/${endpoint}`)};
let job = await ask(\`\${url}/run\`, ${post});
while (["IN_QUEUE", "IN_PROGRESS"].includes(job.status)) {
  await pause();
  job = await ask(\`\${url}/status/\${job.id}\`);
}
if (job.status !== "COMPLETED") throw new Error(job.error ?? job.status);
console.log(job.output.video_url);
`,
    ),
  aiml: ({ base, keyed }, body) =>
    javaScript(
      keyed,
      body,
      `const url = ${JSON.stringify(`${base}/v2/video/generations`)};
let video = await ask(url, ${post});
while (["queued", "generating"].includes(video.status)) {
  await pause();
  video = await ask(\`\${url}?generation_id=\${video.id}\`);
}
if (video.status !== "completed") throw new Error(video.error.message);
console.log(video.video.url);
`,
    ),
  oxen: ({ base, keyed }, body) =>
    javaScript(
      keyed,
      body,
      `const url = ${JSON.stringify(`${base}/api/ai/queue`)};
let [video] = (await ask(url, ${post})).generations;
while (["queued", "processing"].includes(video.status)) {
  await pause();
  video = await ask(\`\${url}/\${video.generation_id}\`);
}
if (video.status !== "succeeded") throw new Error(video.error_message ?? video.status);
console.log(video.result_url);
`,
    ),
};

const WRITERS = { curl: SHELL, python: PYTHON, javascript: JAVASCRIPT };
