// The example: a picture of this page, and a prompt for it.

import { byId } from "./dom.js";

/** Puts it into the form, replacing the contents. */
export async function fillExample(form, assets) {
  const answer = await fetch(`${assets}/example.jpg`);
  const file = new File([await answer.blob()], "example.jpg", { type: "image/jpeg" });
  form.restore({ begin: "picture", options: { prompt: byId("example-prompt").textContent }, media: {} });
  await form.image.useFile(file);
}
