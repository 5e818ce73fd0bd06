// The progress of a job over all stages, computed from the gateway's reports. Pure.

/** The stages in order: the share of each in a usual job, and its name for users. */
export const STAGES = [
  { name: "prepare", weight: 0.04, title: "Picture and prompt" },
  { name: "denoise", weight: 0.56, title: "Rendering" },
  { name: "decode", weight: 0.26, title: "Decoding" },
  { name: "encode", weight: 0.06, title: "Encoding" },
  { name: "sound", weight: 0.05, title: "Sound" },
  { name: "publish", weight: 0.03, title: "Storing" },
];

/**
 * The progress of one job. Clips of several segments alternate between rendering and decoding, with
 * steps that count over the whole clip, so each stage's share is kept. Polls may miss steps, but
 * decoded frames were rendered before.
 */
export class Bar {
  #shares = new Map();
  #most = 0;

  /** `progress` is `{stage, step, steps}`. @returns from 0 to 1, never less than before. */
  at({ stage, step, steps }) {
    const index = STAGES.findIndex(({ name }) => name === stage);
    const share = steps > 0 ? Math.min(1, step / steps) : 0;
    if (index >= 0) this.#shares.set(stage, share);
    if (stage === "decode") {
      this.#shares.set("denoise", Math.max(share, this.#shares.get("denoise") ?? 0));
    }
    const together = STAGES[index]?.name === "decode" ? ["denoise"] : [];
    let whole = 0;
    STAGES.forEach(({ name, weight }, place) => {
      const passed = place < index && !together.includes(name);
      whole += weight * (passed ? 1 : (this.#shares.get(name) ?? 0));
    });
    this.#most = Math.max(this.#most, whole);
    return this.#most;
  }
}

export const titleOf = (stage) => STAGES.find(({ name }) => name === stage)?.title ?? "Working";
