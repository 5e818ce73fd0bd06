// The media of a request: how each kind of file is read so that all of them fit in one request, and
// the request's `input`.

import { megabytes } from "./dom.js";
import { Unusable, dataUri, filesMaxBytes, readPicture } from "./media.js";
import { readSound } from "./sound.js";

const LEAST_PICTURE_BYTES = 256 * 1024; // the least that a sound leaves for the picture
const CLIP_SECONDS = [2, 10]; // the range that the engine accepts
const CLIP_SLACK_SECONDS = 0.1; // browsers may report some frames more or less

/** Functions that read and describe the files of each picker. `taken(name)`: bytes of others. */
export function readers(limits, taken) {
  const room = filesMaxBytes(limits.requestMaxBytes);
  const picture = (name) => (file) =>
    readPicture(file, Math.min(room - taken(name), limits.imageMaxBytes), limits);
  return {
    read: {
      image: picture("image"),
      last: picture("last"),
      clip: (file) => readClip(file, room - taken("clip")),
      audio: (file, part) => readSound(file, room - LEAST_PICTURE_BYTES, limits, part),
    },
    describe: {
      image: describePicture,
      last: describePicture,
      clip: describeClip,
      audio: describeSound,
    },
  };
}

/** The contract's `input`, with files as data URIs. */
export async function requestInput(options, media, limits) {
  const { prompt, negative_prompt, ...others } = options;
  const { references, audio, ...first } = media;
  const input = { prompt };
  for (const [name, value] of Object.entries(first)) {
    input[name] = await sourceOf(name, value, media, limits);
  }
  if (references) {
    input.references = await Promise.all(references.map((one) => one.url ?? dataUri(one)));
  }
  if (audio) input.audio = audio.url ?? (await dataUri(audio));
  if (negative_prompt.trim()) input.negative_prompt = negative_prompt;
  return { ...input, ...others };
}

async function sourceOf(name, value, media, limits) {
  if (value.url) return value.url;
  const others = Object.entries(media).filter(([other]) => other !== name);
  const taken = others.reduce((sum, [, one]) => sum + (one?.blob?.size ?? 0), 0);
  const room = filesMaxBytes(limits.requestMaxBytes) - taken;
  if (value.blob.size <= room || name === "first_clip") return dataUri(value);
  // A file chosen later has taken its room.
  return dataUri(await readPicture(value.file, Math.min(room, limits.imageMaxBytes), limits));
}

/** A clip to continue, unchanged. The server may read files that the browser cannot. */
async function readClip(file, room) {
  if (file.size > room) {
    throw new Unusable(
      `This clip has ${megabytes(file.size)}; ${megabytes(room)} are left: give its URL`,
    );
  }
  const { seconds, width, height } = await seen(file);
  const [least, most] = CLIP_SECONDS;
  if (
    seconds !== null &&
    (seconds < least - CLIP_SLACK_SECONDS || seconds > most + CLIP_SLACK_SECONDS)
  ) {
    throw new Unusable(`This clip has ${seconds.toFixed(1)} s; it may have ${least} to ${most} s`);
  }
  return {
    blob: file,
    type: file.type || "video/mp4",
    file,
    width,
    height,
    seconds,
    changed: false,
  };
}

function seen(file) {
  const video = document.createElement("video");
  const url = URL.createObjectURL(file);
  const told = ({ duration, videoWidth, videoHeight }) => ({
    seconds: Number.isFinite(duration) ? duration : null,
    width: videoWidth || undefined,
    height: videoHeight || undefined,
  });
  return new Promise((resolve) => {
    video.onloadedmetadata = video.onerror = () => resolve(told(video));
    video.preload = "metadata";
    video.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

function describePicture({ file, blob, changed, width, height, from, bytes = file.size }) {
  const before = `${file.name || "picture"}, ${from.width} × ${from.height}, ${megabytes(bytes)}`;
  return changed
    ? `${before}; sent as a JPEG of ${width} × ${height}, ${megabytes(blob.size)}`
    : before;
}

function describeClip({ file, seconds }) {
  return [file.name || "clip", seconds && `${seconds.toFixed(1)} s`, megabytes(file.size)]
    .filter(Boolean)
    .join(", ");
}

function describeSound({ file, blob, changed, seconds, from, start = 0, bytes = file.size }) {
  const before = `${file.name || "sound"}, ${(from ?? seconds).toFixed(1)} s, ${megabytes(bytes)}`;
  if (!changed) return before;
  return `${before}; ${partOf(seconds, from, start)} as a WAV file, ${megabytes(blob.size)}`;
}

function partOf(seconds, from, start) {
  if (start > 0) return `${seconds.toFixed(1)} s from ${start.toFixed(1)} s on are sent`;
  return seconds < from
    ? `its first ${seconds.toFixed(Number.isInteger(seconds) ? 0 : 1)} s are sent`
    : "sent";
}
