// Pictures and sounds from this computer: read, checked against the contract, and made to fit.

/** A file that cannot be used. The message is a sentence for the user. */
export class Unusable extends Error {}

const KINDS = { jpeg: "image/jpeg", png: "image/png", bmp: "image/bmp", webp: "image/webp" };
const ENOUGH_PX = 3840; // twice what the largest video shows
const QUALITY = 0.92;
const SMALLER = 0.8;
const THUMB_PX = 192;

/**
 * A picture of at most `maxBytes`, in a format and of a size that the engine takes: the file as it
 * is where that holds, else a smaller JPEG of it, upright and on white.
 */
export async function readPicture(file, maxBytes, limits) {
  const bitmap = await decode(file);
  try {
    const { width, height } = bitmap;
    const least = limits.imageMinSide;
    if (Math.min(width, height) < least) {
      throw new Unusable(`This picture has ${width} × ${height} pixels; each side needs ${least} at least`);
    }
    const kind = await kindOf(file);
    const fits = file.size <= maxBytes && Math.max(width, height) <= limits.imageMaxSide;
    const sent = kind && fits ? { blob: file, type: kind, width, height } : await shrink(bitmap, maxBytes, least);
    const thumb = canvasOf(bitmap, scaleTo(bitmap, THUMB_PX)).toDataURL("image/jpeg", 0.7);
    return { ...sent, file, changed: sent.blob !== file, from: { width, height }, thumb };
  } finally {
    bitmap.close();
  }
}

async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Unusable(`This browser cannot read ${file.name || "the file"} as a picture`);
  }
}

/** The type by content, where it is one that the engine takes. */
async function kindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return KINDS.jpeg;
  if (text.startsWith("\x89PNG")) return KINDS.png;
  if (text.startsWith("BM")) return KINDS.bmp;
  return text.startsWith("RIFF") && text.endsWith("WEBP") ? KINDS.webp : null;
}

async function shrink(bitmap, maxBytes, leastSide) {
  for (let scale = scaleTo(bitmap, ENOUGH_PX); ; scale *= SMALLER) {
    const canvas = canvasOf(bitmap, scale);
    if (Math.min(canvas.width, canvas.height) < leastSide) {
      throw new Unusable("This picture cannot be made small enough to be sent: give its URL");
    }
    const blob = await new Promise((done) => canvas.toBlob(done, KINDS.jpeg, QUALITY));
    if (blob && blob.size <= maxBytes) {
      return { blob, type: KINDS.jpeg, width: canvas.width, height: canvas.height };
    }
  }
}

const scaleTo = ({ width, height }, most) => Math.min(1, most / Math.max(width, height));

function canvasOf(bitmap, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { alpha: false });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A sound of at most `maxBytes`, with its length in seconds. */
export async function readSound(file, maxBytes, limits) {
  const type = await soundKindOf(file);
  if (!type) throw new Unusable(`${file.name} is neither a WAV nor an MP3 file`);
  const most = Math.min(maxBytes, limits.audioMaxBytes);
  if (file.size > most) {
    const size = (bytes) => (bytes / 2 ** 20).toFixed(1);
    const advice = most < limits.audioMaxBytes ? ": use an MP3, or give its URL" : "";
    throw new Unusable(`This sound has ${size(file.size)} MB, and ${size(most)} MB can be sent${advice}`);
  }
  const seconds = await secondsOf(file);
  if (seconds > limits.audioMaxSeconds) {
    throw new Unusable(`This sound lasts ${seconds.toFixed(1)} s; it may be ${limits.audioMaxSeconds} s long`);
  }
  return { blob: file, type, file, seconds };
}

async function soundKindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("RIFF") && text.endsWith("WAVE")) return "audio/wav";
  const frame = bytes[0] === 0xff && (bytes[1] & 0xe0) === 0xe0;
  return text.startsWith("ID3") || frame ? "audio/mpeg" : null;
}

function secondsOf(file) {
  const audio = document.createElement("audio");
  const url = URL.createObjectURL(file);
  return new Promise((resolve, reject) => {
    audio.onloadedmetadata = () => resolve(audio.duration);
    audio.onerror = () => reject(new Unusable(`This browser cannot read ${file.name} as a sound`));
    audio.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

/** `data:TYPE;base64,...`, by content and not by what the system thinks of the file's name. */
export function dataUri({ blob, type }) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(`data:${type};base64,${reader.result.slice(reader.result.indexOf(",") + 1)}`);
    reader.onerror = () => reject(new Unusable("The file can no longer be read: choose it again"));
    reader.readAsDataURL(blob);
  });
}

/** The bytes of files whose base64 fits in a request of `requestMaxBytes` beside its other fields. */
export function filesMaxBytes(requestMaxBytes) {
  const others = Math.min(64 * 1024, requestMaxBytes / 8);
  return Math.floor(((requestMaxBytes - others) * 3) / 4);
}
