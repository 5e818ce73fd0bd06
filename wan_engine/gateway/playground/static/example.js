// The example: a picture of this page, a prompt for it, and the clip of both.

import { byId } from "./dom.js";
import { Unusable } from "./media.js";

/** Puts it into the form, replacing the contents. Throws `Unusable` if its picture is not there. */
export async function fillExample(form, assets) {
  const blob = await pictureOf(assets);
  const file = new File([blob], "example.jpg", { type: "image/jpeg" });
  form.restore({
    begin: "picture",
    options: { prompt: byId("example-prompt").textContent },
    media: {},
  });
  await form.image.useFiles([file]);
}

async function pictureOf(assets) {
  try {
    const answer = await fetch(`${assets}/example.jpg`);
    if (answer.ok) return await answer.blob();
  } catch {
    // The server does not answer. An address that has ended is of an older page.
  }
  throw new Unusable("The example does not come from the server: reload the page");
}

/** Plays its clip once when it is first seen, and fetches it no earlier. */
export function showExample(assets) {
  const clip = byId("example-clip");
  const observer = new IntersectionObserver(
    (entries) => {
      if (!entries.some(({ isIntersecting }) => isIntersecting)) return;
      observer.disconnect();
      play(clip, `${assets}/example.mp4`).catch(() => {}); // its picture stays
    },
    { threshold: 0.5 },
  );
  observer.observe(clip);
}

async function play(clip, url) {
  const answer = await fetch(url);
  if (!answer.ok) return;
  // Some browsers play no address without ranges.
  clip.src = URL.createObjectURL(await answer.blob());
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) await clip.play();
}
