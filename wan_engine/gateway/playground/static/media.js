// Files from this computer: read, checked, and pictures made smaller if needed.

import { megabytes } from "./dom.js";

/** A file that cannot be used. The message is a sentence for the user. */
export class Unusable extends Error {}

const KINDS = { jpeg: "image/jpeg", png: "image/png", bmp: "image/bmp", webp: "image/webp" };
const ENOUGH_PX = 3840; // twice what the largest video shows
const QUALITY = 0.92;
const SMALLER = 0.8;
const THUMB_PX = 192;
const SILENT_MS = 10000; // some browsers say nothing of a file that they cannot play

/**
 * A picture of at most `maxBytes`, in a format and size that the engine accepts: the unchanged file
 * if possible, otherwise a smaller JPEG of it, upright and on white.
 */
export async function readPicture(file, maxBytes, limits) {
  const bitmap = await decode(file);
  try {
    const { width, height } = bitmap;
    const least = limits.imageMinSide;
    if (Math.min(width, height) < least) {
      throw new Unusable(
        `This picture has ${width} × ${height} pixels; each side needs ${least} at least`,
      );
    }
    const kind = await kindOf(file);
    const asItIs = kind && Math.max(width, height) <= limits.imageMaxSide;
    const sent =
      asItIs && file.size <= maxBytes
        ? { blob: file, type: kind, width, height }
        : await shrink(bitmap, maxBytes, limits, asItIs && file.size <= limits.imageMaxBytes);
    const thumb = canvasOf(bitmap, scaleTo(bitmap, THUMB_PX)).toDataURL("image/jpeg", 0.7);
    return { ...sent, file, changed: sent.blob !== file, from: { width, height }, thumb };
  } finally {
    bitmap.close();
  }
}

/** A video, unchanged: the server may read what the browser cannot. */
export function readVideo(file, maxBytes, what) {
  if (file.size > maxBytes) {
    const left = megabytes(Math.max(0, maxBytes));
    throw new Unusable(`This ${what} has ${megabytes(file.size)}; ${left} are left: give its URL`);
  }
  const type = /^video\/[\w.+-]+$/.test(file.type) ? file.type : "video/mp4";
  return { blob: file, type, file, changed: false };
}

/**
 * The player of a file, "audio" or "video", once the player knows its length and size or cannot
 * tell them.
 */
export function playerOf(kind, file) {
  const player = document.createElement(kind);
  const url = URL.createObjectURL(file);
  return new Promise((resolve) => {
    player.onloadedmetadata = player.onerror = () => resolve(player);
    setTimeout(resolve, SILENT_MS, player);
    player.preload = "metadata";
    player.src = url;
  }).finally(() => URL.revokeObjectURL(url));
}

async function decode(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Unusable(
      `This browser cannot read ${file.name ? `“${file.name}”` : "the file"} as a picture`,
    );
  }
}

/** The type by content, if the engine accepts it. */
async function kindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("\xff\xd8\xff")) return KINDS.jpeg;
  if (text.startsWith("\x89PNG")) return KINDS.png;
  if (text.startsWith("BM")) return KINDS.bmp;
  return text.startsWith("RIFF") && text.endsWith("WEBP") ? KINDS.webp : null;
}

/** A JPEG of the bitmap. `urlHelps`: the file would be accepted by URL. */
async function shrink(bitmap, maxBytes, limits, urlHelps) {
  const sides = [bitmap.width, bitmap.height];
  const least = limits.imageMinSide / Math.min(...sides);
  const most = Math.min(1, limits.imageMaxSide / Math.max(...sides));
  if (least > most) {
    const times = Math.floor(limits.imageMaxSide / limits.imageMinSide);
    const picture = `This picture has ${sides.join(" × ")} pixels`;
    throw new Unusable(`${picture}; one side may be ${times} times the other at most: crop it`);
  }
  let scale = Math.min(most, Math.max(least, scaleTo(bitmap, ENOUGH_PX)));
  for (;;) {
    const canvas = canvasOf(bitmap, scale);
    const blob = await new Promise((done) => canvas.toBlob(done, KINDS.jpeg, QUALITY));
    if (blob && blob.size <= maxBytes) {
      return { blob, type: KINDS.jpeg, width: canvas.width, height: canvas.height };
    }
    if (scale === least) {
      const help = urlHelps ? "give its URL" : "crop it";
      throw new Unusable(`This picture cannot be made small enough to be sent: ${help}`);
    }
    scale = Math.max(least, scale * SMALLER);
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

/** `data:TYPE;base64,...`, with the type of the content and not of the file's name. */
export function dataUri({ blob, type }) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () =>
      resolve(`data:${type};base64,${reader.result.slice(reader.result.indexOf(",") + 1)}`);
    reader.onerror = () => reject(new Unusable("The file can no longer be read: choose it again"));
    reader.readAsDataURL(blob);
  });
}

/** The file of a data URI in base64, called `name`; null if it is not one. */
export function fileOf(uri, name) {
  const [, told, data] = uri.match(/^data:([^;,]*)[^,]*;base64,(.*)$/is) ?? [];
  if (data === undefined) return null;
  const type = /^[a-z]+\/[\w.+-]+$/i.test(told) ? told.toLowerCase() : "";
  try {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return new File([bytes], `${name}.${type.split("/")[1] ?? "bin"}`, { type });
  } catch {
    return null;
  }
}

/** The bytes of the files in `media`, which has one medium, a list or nothing in each field. */
export const bytesOf = (media) =>
  Object.values(media)
    .flat()
    .reduce((sum, one) => sum + (one?.blob?.size ?? 0), 0);

/** The bytes of files whose base64 fits in a request of `requestMaxBytes` with its other fields. */
export function filesMaxBytes(requestMaxBytes) {
  const others = Math.min(64 * 1024, requestMaxBytes / 8);
  return Math.floor(((requestMaxBytes - others) * 3) / 4);
}
