// Sounds from this computer: sent unchanged if the contract accepts them, otherwise a part as a WAV
// file.

import { playerOf, Unusable } from "./media.js";

const WAV = "audio/wav";
const MP3 = "audio/mpeg";
const HEADER_BYTES = 44;
const SAMPLE_BYTES = 2;
// The best quality that fits is used.
const QUALITIES = [
  { rate: 48000, channels: 2 },
  { rate: 48000, channels: 1 },
  { rate: 24000, channels: 1 },
  { rate: 16000, channels: 1 },
];
const MOST_BYTES = 128 * 2 ** 20; // a decoded sound takes ten times as much
const MOST_SECONDS = 600;
const STEP_SECONDS = 0.1; // of the sliders

/**
 * A sound of at most `maxBytes` that the engine accepts, with its length in seconds: the unchanged
 * file if possible, otherwise its `part`, `{start, seconds}`, as a WAV file. Without a `part`, its
 * beginning, as long as the longest clip. `heard` is the sent sound, for the player.
 */
export async function readSound(file, maxBytes, limits, part = null) {
  const type = await kindOf(file);
  const most = Math.min(maxBytes, limits.audioMaxBytes);
  const whole = type === null ? null : await secondsOf(file);
  const asItIs =
    !part || (whole !== null && part.start === 0 && part.seconds >= whole - STEP_SECONDS);
  if (asItIs && whole !== null && whole <= limits.audioMaxSeconds && file.size <= most) {
    return { blob: file, type, file, seconds: whole, changed: false };
  }
  const { buffer, from } = await decode(file, whole);
  const start = part?.start ?? 0;
  const longest = part?.seconds ?? Math.max(...limits.durations);
  const seconds = Math.min(buffer.duration - start, limits.audioMaxSeconds, longest);
  const blob = await wavOf(buffer, start, seconds, most);
  return { blob, type: WAV, file, heard: blob, seconds, start, changed: true, from };
}

/** The type by content, if the engine accepts it and this browser can read it. */
async function kindOf(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...bytes);
  if (text.startsWith("RIFF") && text.endsWith("WAVE")) return WAV;
  const layerThree = bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2;
  return text.startsWith("ID3") || layerThree ? MP3 : null;
}

/** Null if the browser does not know it before decoding. */
async function secondsOf(file) {
  const { duration } = await playerOf("audio", file);
  return Number.isFinite(duration) ? duration : null;
}

/** The samples, and the length of the file in seconds. */
async function decode(file, known) {
  const seconds = known ?? (await secondsOf(file));
  if (seconds > MOST_SECONDS || file.size > MOST_BYTES) {
    throw new Unusable(
      `This sound is too long to be cut here: save its first ${MOST_SECONDS / 60} minutes at most`,
    );
  }
  const { rate } = QUALITIES[0];
  try {
    const buffer = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await asPlain(file));
    return { buffer, from: buffer.duration };
  } catch {
    throw new Unusable(
      `This browser cannot read ${file.name ? `“${file.name}”` : "the file"} as a sound`,
    );
  }
}

/** Its bytes. For a browser, a WAV in the format for large files needs other first letters. */
async function asPlain(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const text = String.fromCharCode(...bytes.slice(0, 12));
  if (/^(RF64|BW64)....WAVE$/s.test(text)) bytes.set([0x52, 0x49, 0x46, 0x46]); // RIFF
  return bytes.buffer;
}

async function wavOf(buffer, start, seconds, maxBytes) {
  const bytesOf = ({ rate, channels }) =>
    HEADER_BYTES + Math.floor(seconds * rate) * channels * SAMPLE_BYTES;
  const quality = QUALITIES.find(
    (one) => one.channels <= buffer.numberOfChannels && bytesOf(one) <= maxBytes,
  );
  if (!quality) {
    throw new Unusable(
      "This sound cannot be made small enough to be sent: use an MP3, or give its URL",
    );
  }
  const frames = Math.max(1, Math.floor(seconds * quality.rate));
  const context = new OfflineAudioContext(quality.channels, frames, quality.rate);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start(0, start);
  return encode(await context.startRendering());
}

/** 16-bit PCM. */
function encode(buffer) {
  const { numberOfChannels, sampleRate, length } = buffer;
  const frameBytes = numberOfChannels * SAMPLE_BYTES;
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + length * frameBytes));
  const word = (at, letters) =>
    [...letters].forEach((letter, n) => view.setUint8(at + n, letter.charCodeAt(0)));
  word(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  word(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, numberOfChannels, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * frameBytes, true);
  view.setUint16(32, frameBytes, true);
  view.setUint16(34, 8 * SAMPLE_BYTES, true);
  word(36, "data");
  view.setUint32(40, length * frameBytes, true);
  const samples = new Int16Array(view.buffer, HEADER_BYTES);
  for (let channel = 0; channel < numberOfChannels; channel++) {
    const levels = buffer.getChannelData(channel);
    for (let n = 0; n < length; n++) {
      samples[n * numberOfChannels + channel] = Math.max(
        -32768,
        Math.min(32767, Math.round(levels[n] * 32767)),
      );
    }
  }
  return new Blob([view], { type: WAV });
}
