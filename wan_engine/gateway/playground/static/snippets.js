// The form's request as code, for each API in each language. Pure text: `python`, `node` and `sh`
// run it as it is, with a key in place of YOUR_API_KEY.
//
// Each API has its own defaults, so every option is written out. The code reads files itself.

import { BODIES, LocalFile, source } from "./bodies.js";

const KEY = "YOUR_API_KEY";
const PLACEHOLDER = "https://example.com/picture.jpg";
const FIRST_PROMPT = "A person walking through a sunny park, leaves gently swaying";

/**
 * @param api "runpod", "aiml", "oxen", "dashscope" or "openai"
 * @param language "curl", "python" or "javascript"
 * @param wish `{base, endpoint, keyed, options, media, shape}`: options and media by the contract's
 *   names, media as their pickers have them; `base` without a slash at its end; `keyed` if the
 *   server needs a key; `shape` the width and height of a clip without a picture
 */
export function snippet(api, language, wish) {
  const { image, last_image, first_clip, references, audio } = wish.media;
  const body = BODIES[api]({
    ...wish.options,
    shape: wish.shape,
    prompt: wish.options.prompt.trim() ? wish.options.prompt : FIRST_PROMPT,
    image: references || first_clip ? undefined : (source(image) ?? PLACEHOLDER),
    last_image: source(last_image),
    first_clip: source(first_clip),
    references: references?.map(source),
    audio: source(audio),
  });
  return WRITERS[language][api](wish, body).trimStart();
}

// --- a value in each language --------------------------------------------------------------------

/** `value` over several lines. `leaf(value)` writes what is not an object, `name(key)` a key. */
function written(value, indent, { leaf, name, step, trailing }) {
  if (value === null || typeof value !== "object" || value instanceof LocalFile) return leaf(value);
  const inner = indent + step;
  const list = Array.isArray(value);
  const [open, close] = list ? "[]" : "{}";
  if (!Object.keys(value).length) return open + close;
  const rows = Object.entries(value).map(([key, one]) => {
    const named = list ? "" : `${name(key)}: `;
    return inner + named + written(one, inner, { leaf, name, step, trailing });
  });
  return `${open}\n${rows.join(",\n")}${trailing}\n${indent}${close}`;
}

const inPython = (value) =>
  written(value, "", { leaf: pythonLeaf, name: JSON.stringify, step: "    ", trailing: "," });

function pythonLeaf(value) {
  if (value instanceof LocalFile) {
    return `data_uri(${JSON.stringify(value.name)}, ${JSON.stringify(value.type)})`;
  }
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

const inJavaScript = (value) =>
  written(value, "", { leaf: javaScriptLeaf, name: (key) => key, step: "  ", trailing: "," });

const javaScriptLeaf = (value) =>
  value instanceof LocalFile
    ? `await dataUri(${JSON.stringify(value.name)}, ${JSON.stringify(value.type)})`
    : JSON.stringify(value);

/** The body on curl's standard input, because an argument has a limit of length. */
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
  value instanceof LocalFile ||
  (typeof value === "object" && value !== null && Object.values(value).some(hasFile));

// --- curl ----------------------------------------------------------------------------------------

const bearer = (keyed) => (keyed ? `\n  -H 'Authorization: Bearer ${KEY}' \\` : "");

const ASYNC = "X-DashScope-Async";

const curl = (url, keyed, body, more = "") => `curl -sS ${inShell(url)} \\${bearer(keyed)}
  -H 'Content-Type: application/json' \\
  ${more}--data-binary @- ${hereDocument(body)}
`;

const SHELL = {
  runpod: ({ base, endpoint, keyed }, body) =>
    `# Waits up to 300 s; a longer job is then asked for at
# ${base}/v2/${endpoint}/status/ID
${curl(`${base}/v2/${endpoint}/runsync`, keyed, body)}`,
  aiml: (
    { base, keyed },
    body,
  ) => `${curl(`${base}/v2/video/generations`, keyed, body, "-o answer.json ")}
while jq -e '.status == "queued" or .status == "generating"' answer.json > /dev/null; do
  sleep 2
  curl -sS "${base}/v2/video/generations?generation_id=$(jq -r .id answer.json)" \\${bearer(keyed)}
    -o answer.json
done
jq . answer.json
`,
  oxen: ({ base, keyed }, body) => `# Answers when the video is finished
${curl(`${base}/api/ai/videos/generate`, keyed, body)}`,
  dashscope: (
    { base, keyed },
    body,
  ) => `${curl(synthesis(base), keyed, body, `-H '${ASYNC}: enable' -o answer.json `)}
task=$(jq -er .output.task_id answer.json) || { cat answer.json; exit 1; }
while jq -e '.output.task_status | IN("PENDING", "RUNNING")' answer.json > /dev/null; do
  sleep 2
  curl -sS "${base}/api/v1/tasks/$task" \\${bearer(keyed)}
    -o answer.json
done
jq . answer.json
`,
  openai: ({ base, keyed }, body) => `${curl(`${base}/v1/videos`, keyed, body, "-o answer.json ")}
video=$(jq -er .id answer.json) || { cat answer.json; exit 1; }
while jq -e '.status == "queued" or .status == "in_progress"' answer.json > /dev/null; do
  sleep 2
  curl -sS "${base}/v1/videos/$video" \\${bearer(keyed)}
    -o answer.json
done
jq . answer.json
curl -sS --fail "${base}/v1/videos/$video/content" \\${bearer(keyed)}
  -o clip.mp4
`,
};

const synthesis = (base) => `${base}/api/v1/services/aigc/video-generation/video-synthesis`;

// --- Python --------------------------------------------------------------------------------------

function python(keyed, body, lines, headers = {}) {
  const files = hasFile(body);
  const reader = `

def data_uri(path, kind):
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"
`;
  return `${files ? "import base64\n" : ""}import time

import requests

HEADERS = ${inPython({ ...(keyed ? { Authorization: `Bearer ${KEY}` } : {}), ...headers })}


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
  dashscope: ({ base, keyed }, body) =>
    python(
      keyed,
      body,
      `task = ask("POST", ${JSON.stringify(synthesis(base))}, json=request)["output"]
while task["task_status"] in ("PENDING", "RUNNING"):
    time.sleep(2)
    task = ask("GET", f"${base}/api/v1/tasks/{task['task_id']}")["output"]
if task["task_status"] != "SUCCEEDED":
    raise SystemExit(task.get("message", task["task_status"]))
print(task["video_url"])
`,
      { [ASYNC]: "enable" },
    ),
  openai: ({ base, keyed }, body) =>
    python(
      keyed,
      body,
      `url = ${JSON.stringify(`${base}/v1/videos`)}
video = ask("POST", url, json=request)
while video["status"] in ("queued", "in_progress"):
    time.sleep(2)
    video = ask("GET", f"{url}/{video['id']}")
if video["status"] != "completed":
    raise SystemExit(video["error"]["message"])
clip = requests.get(f"{url}/{video['id']}/content", headers=HEADERS, timeout=60)
clip.raise_for_status()
with open("clip.mp4", "wb") as file:
    file.write(clip.content)
print("clip.mp4")
`,
    ),
};

// --- JavaScript ----------------------------------------------------------------------------------

function javaScript(keyed, body, lines, { headers = {}, writes = false } = {}) {
  const files = hasFile(body);
  const reader = `
async function dataUri(path, kind) {
  return \`data:\${kind};base64,\${await readFile(path, "base64")}\`;
}
`;
  const used = [files && "readFile", writes && "writeFile"].filter(Boolean).join(", ");
  const more = Object.entries(headers).map(([name, value]) => `\n  "${name}": "${value}",`);
  const imports = used ? `import { ${used} } from "node:fs/promises";\n\n` : "";
  const authorization = keyed ? `\n  Authorization: "Bearer ${KEY}",` : "";
  return `${imports}const headers = {${authorization}
  "Content-Type": "application/json",${more.join("")}
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
  dashscope: ({ base, keyed }, body) =>
    javaScript(
      keyed,
      body,
      `let task = (await ask(${JSON.stringify(synthesis(base))}, ${post})).output;
while (["PENDING", "RUNNING"].includes(task.task_status)) {
  await pause();
  task = (await ask(\`${base}/api/v1/tasks/\${task.task_id}\`)).output;
}
if (task.task_status !== "SUCCEEDED") throw new Error(task.message ?? task.task_status);
console.log(task.video_url);
`,
      { headers: { [ASYNC]: "enable" } },
    ),
  openai: ({ base, keyed }, body) =>
    javaScript(
      keyed,
      body,
      `const url = ${JSON.stringify(`${base}/v1/videos`)};
let video = await ask(url, ${post});
while (["queued", "in_progress"].includes(video.status)) {
  await pause();
  video = await ask(\`\${url}/\${video.id}\`);
}
if (video.status !== "completed") throw new Error(video.error.message);
const clip = await fetch(\`\${url}/\${video.id}/content\`, { headers });
if (!clip.ok) throw new Error(await clip.text());
await writeFile("clip.mp4", Buffer.from(await clip.arrayBuffer()));
console.log("clip.mp4");
`,
      { writes: true },
    ),
};

const WRITERS = { curl: SHELL, python: PYTHON, javascript: JAVASCRIPT };
