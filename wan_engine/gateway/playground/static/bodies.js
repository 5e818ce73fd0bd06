// The form's request as a body of each API.

/** A file in a request, which the code reads. */
export class LocalFile {
  constructor({ file, type }) {
    this.name = file.name.replaceAll(/\p{Cc}/gu, "_"); // a line's end would end a shell's document
    this.type = type;
  }
}

export const source = (media) => media?.url ?? (media?.file ? new LocalFile(media) : undefined);

/** The body of a request, by API. `snippets.js` describes a `wish`; media are sources. */
export const BODIES = {
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
      loras: wish.loras,
    }),
  }),
  aiml: (wish) =>
    given({
      model: wish.references ? "alibaba/wan-2-6-r2v" : "alibaba/wan-2-6-i2v",
      prompt: wish.prompt,
      image_url: wish.image,
      last_image_url: wish.last_image,
      video_urls: wish.references,
      audio_url: wish.audio,
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
      audio_url: wish.audio,
      resolution: resolution(wish),
      aspect_ratio: wish.aspect_ratio,
      negative_prompt: text(wish.negative_prompt),
      seed: fixed(wish.seed),
      multi_shots: wish.shot_type === "multi",
      enable_prompt_expansion: wish.enable_prompt_expansion,
      enable_safety_checker: wish.enable_safety_checker,
      generate_audio: wish.generate_audio,
    }),
  dashscope: (wish) => ({
    model: dashscopeModel(wish),
    input: given({
      prompt: wish.prompt,
      negative_prompt: text(wish.negative_prompt),
      img_url: wish.image,
      last_frame_url: wish.image && wish.last_image,
      media: wish.first_clip && dashscopeMedia(wish),
      reference_urls: wish.references?.length ? wish.references : undefined,
      audio_url: wish.audio,
    }),
    parameters: given({
      ...(wish.references
        ? { size: wish.shape.join("*") }
        : { resolution: resolution(wish).toUpperCase() }),
      duration: wish.duration,
      shot_type: wish.shot_type,
      seed: fixed(wish.seed),
      prompt_extend: wish.enable_prompt_expansion,
      audio: wish.generate_audio,
    }),
  }),
  openai: (wish) =>
    given({
      model: wish.references
        ? wish.references.length
          ? "wan-2-6-r2v"
          : "wan-2-6-t2v"
        : "wan-2-6-i2v",
      prompt: wish.prompt,
      input_reference: wish.image && { image_url: wish.image },
      last_image: wish.references ? undefined : wish.last_image,
      first_clip: wish.first_clip,
      keep_first_clip: wish.keep_first_clip,
      references: wish.references,
      audio_reference: wish.audio,
      seconds: String(wish.duration),
      size: wish.references ? wish.shape.join("x") : wish.size.replace("*", "x"),
      negative_prompt: text(wish.negative_prompt),
      seed: fixed(wish.seed),
      shot_type: wish.shot_type,
      enable_prompt_expansion: wish.enable_prompt_expansion,
      enable_safety_checker: wish.enable_safety_checker,
      generate_sound: wish.generate_audio,
      lora: wish.loras,
    }),
};

function dashscopeModel({ references, first_clip }) {
  if (references) return references.length ? "wan2.6-r2v" : "wan2.6-t2v";
  return first_clip ? "wan2.7-i2v" : "wan2.6-i2v";
}

const dashscopeMedia = ({ first_clip, last_image }) => [
  { type: "first_clip", url: first_clip },
  ...(last_image ? [{ type: "last_frame", url: last_image }] : []),
];

const given = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
const text = (value) => (value.trim() ? value : undefined);
const fixed = (seed) => (seed >= 0 ? seed : undefined);
const resolution = ({ size }) => (size === "1920*1080" ? "1080p" : "720p");
