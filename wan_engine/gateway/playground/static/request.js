// The media of a request: how each kind of file is read so that all of them fit in one request, and
// the request's `input`.

import { megabytes } from "./dom.js";
import {
  bytesOf,
  dataUri,
  filesMaxBytes,
  playerOf,
  readPicture,
  readVideo,
  Unusable,
} from "./media.js";
import { readSound } from "./sound.js";

const LEAST_PICTURE_BYTES = 256 * 1024; // the least that a sound leaves for the picture
const CLIP_SLACK_SECONDS = 0.1; // browsers may report some frames more or less
const PICTURES = ["image", "last_image"];

/** Functions that read and describe the files of each picker. `media()`: what would be sent. */
export function readers(limits, media) {
  const room = filesMaxBytes(limits.requestMaxBytes);
  const left = (field) => room - bytesOf({ ...media(), [field]: null });
  const picture = (file, most) => readPicture(file, Math.min(most, limits.imageMaxBytes), limits);
  return {
    read: {
      image: (file) => picture(file, left("image")),
      last: (file) => picture(file, left("last_image")),
      clip: (file) => readClip(file, left("first_clip"), limits),
      references: (file) =>
        file.type.startsWith("video/") ? readVideo(file, left(), "video") : picture(file, left()),
      audio: (file, part) => {
        // Pictures are made smaller when they are sent; a clip and references are not.
        const { first_clip, references } = media();
        const taken = Math.max(LEAST_PICTURE_BYTES, bytesOf({ first_clip, references }));
        return readSound(file, room - taken, limits, part);
      },
    },
    describe: {
      image: describePicture,
      last: describePicture,
      clip: describeClip,
      audio: describeSound,
    },
  };
}

/** The contract's `input`, with files as data URIs. Throws `Unusable`. */
export async function requestInput(options, media, limits) {
  const { prompt, negative_prompt, ...others } = options;
  const fitting = await fitted(media, limits);
  const input = { prompt };
  for (const [field, value] of Object.entries(fitting)) {
    input[field] = Array.isArray(value)
      ? await Promise.all(value.map(sourceOf))
      : await sourceOf(value);
  }
  if (negative_prompt.trim()) input.negative_prompt = negative_prompt;
  return { ...input, ...others };
}

const sourceOf = (one) => one.url ?? dataUri(one);

/** The media, with pictures made smaller where files that were chosen later took their room. */
async function fitted(media, limits) {
  const room = filesMaxBytes(limits.requestMaxBytes);
  const found = { ...media };
  for (const field of PICTURES) {
    const left = Math.min(room - bytesOf({ ...found, [field]: null }), limits.imageMaxBytes);
    const { blob, file } = found[field] ?? {};
    if (blob?.size > left) found[field] = await readPicture(file, left, limits);
  }
  const bytes = bytesOf(found);
  if (bytes > room) {
    const files = `The files have ${megabytes(bytes)}; a request has room for ${megabytes(room)}`;
    throw new Unusable(`${files}: make one smaller, or give its URL`);
  }
  return found;
}

/** A clip to continue. */
async function readClip(file, maxBytes, limits) {
  const video = readVideo(file, maxBytes, "clip");
  const { duration, videoWidth, videoHeight } = await playerOf("video", file);
  const seconds = Number.isFinite(duration) ? duration : null;
  const { clipMinSeconds: least, clipMaxSeconds: most } = limits;
  const short = seconds !== null && seconds < least - CLIP_SLACK_SECONDS;
  if (short || seconds > most + CLIP_SLACK_SECONDS) {
    throw new Unusable(
      `This clip is ${seconds.toFixed(1)} s long; it may be ${least} to ${most} s long`,
    );
  }
  return { ...video, width: videoWidth || undefined, height: videoHeight || undefined, seconds };
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
