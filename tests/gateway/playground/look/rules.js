// What is wrong with the page as it is shown now, a sentence each. Told the width of the window.
(width) => {
  const found = [];
  const PHONE_PX = 480;
  const TARGET_PX = 24;
  const INPUT_PX = 16;

  const name = (one) =>
    one.tagName.toLowerCase() +
    (one.id ? `#${one.id}` : one.className ? `.${String(one.className).split(" ")[0]}` : "") +
    ` “${(one.ariaLabel ?? one.textContent ?? "").trim().slice(0, 40)}”`;
  const styleOf = (one) => getComputedStyle(one);
  const seen = (one) =>
    one.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
    !one.closest(".visually-hidden, .skip:not(:focus)");
  const inBar = (one) => one.closest(".send") !== null; // it may lie over the form by design
  const all = [...document.body.querySelectorAll("*")].filter(seen);

  // --- nothing beside the window -----------------------------------------------------------------
  if (document.documentElement.scrollWidth > width) {
    found.push(`the page is ${document.documentElement.scrollWidth} px wide`);
  }

  // --- no text is cut ----------------------------------------------------------------------------
  const texts = [];
  for (const one of all) {
    if (one.closest("pre, textarea, option, svg")) continue;
    for (const node of one.childNodes) {
      if (node.nodeType !== Node.TEXT_NODE || !node.data.trim()) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      // Cut on purpose, and whole elsewhere.
      const frame = one.closest(".history-prompt")?.getBoundingClientRect();
      for (const box of range.getClientRects()) {
        if (box.width > 0 && (!frame || box.bottom <= frame.bottom + 2)) texts.push({ one, box });
      }
    }
  }
  const inside = (box, frame, slack = 1) =>
    box.left >= frame.left - slack &&
    box.right <= frame.right + slack &&
    box.top >= frame.top - slack &&
    box.bottom <= frame.bottom + slack;
  for (const { one, box } of texts) {
    if (box.right > width + 1 || box.left < -1) found.push(`${name(one)} is beside the window`);
    for (let frame = one; frame && frame !== document.body; frame = frame.parentElement) {
      const style = styleOf(frame);
      const block = !["inline", "contents"].includes(style.display);
      const rect = frame.getBoundingClientRect();
      if (block && (box.left < rect.left - 1 || box.right > rect.right + 1)) {
        const px = Math.round(Math.max(rect.left - box.left, box.right - rect.right));
        found.push(`${name(one)} sticks out of ${name(frame)} by ${px} px`);
        break;
      }
      if (style.overflow !== "visible" && !inside(box, rect, 2)) {
        found.push(`${name(one)} is cut by ${name(frame)}`);
        break;
      }
    }
  }
  // A name of a file, an address or a long word may be broken; a usual one is not.
  const LONG_WORD = 20;
  const WORD = /(?<=^|\s)[\p{L}’-]+(?=\p{P}*(\s|$))/gu;
  for (const one of new Set(texts.map(({ one }) => one))) {
    for (const node of one.childNodes) {
      for (const { 0: word, index } of node.nodeType === Node.TEXT_NODE
        ? node.data.matchAll(WORD)
        : []) {
        const range = document.createRange();
        range.setStart(node, index);
        range.setEnd(node, index + word.length);
        const lines = new Set([...range.getClientRects()].map(({ top }) => Math.round(top)));
        if (word.length <= LONG_WORD && lines.size > 1)
          found.push(`${name(one)} has its word ${word} broken`);
      }
    }
  }
  const pen = document.createElement("canvas").getContext("2d");
  for (const one of all.filter((one) => one.placeholder && !one.value && one.tagName === "INPUT")) {
    const style = styleOf(one);
    pen.font = style.font;
    const room = one.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    if (pen.measureText(one.placeholder).width > room + 1)
      found.push(`the placeholder of ${name(one)} is cut`);
  }

  // --- nothing lies over another -----------------------------------------------------------------
  const WORKED =
    "a[href], button, input:not([type=file]), textarea, select, video, audio, progress, summary";
  const worked = all
    .filter((one) => one.matches(WORKED))
    .map((one) => ({ one, box: one.getBoundingClientRect() }));
  const solid = [
    ...texts.filter(({ one }) => !one.closest(WORKED) && !one.closest(".segments")),
    ...worked.filter(({ one }) => !one.closest(".segments")),
  ];
  const near = (one, other) => one.contains(other) || other.contains(one);
  for (let first = 0; first < solid.length; first++) {
    for (let second = first + 1; second < solid.length; second++) {
      const [{ one, box }, { one: other, box: its }] = [solid[first], solid[second]];
      if (one === other || near(one, other) || inBar(one) !== inBar(other)) continue;
      const wide = Math.min(box.right, its.right) - Math.max(box.left, its.left);
      const high = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
      if (wide > 2 && high > 4) found.push(`${name(one)} and ${name(other)} lie over each other`);
    }
  }

  // --- what is tapped and typed into -------------------------------------------------------------
  for (const { one } of worked) {
    if (one.matches("video, audio, progress") || one.closest("p a")) continue;
    const boxes = [one, ...(one.labels ?? [])].map((part) => part.getBoundingClientRect());
    const high = Math.max(...boxes.map((box) => box.height));
    const wide = Math.max(...boxes.map((box) => box.width));
    if (high < TARGET_PX || wide < TARGET_PX)
      found.push(`${name(one)} is ${Math.round(wide)} × ${Math.round(high)} px to tap`);
    const typed = one.matches(
      "textarea, select, input:not([type=radio], [type=checkbox], [type=range])",
    );
    if (width <= PHONE_PX && typed && parseFloat(styleOf(one).fontSize) < INPUT_PX) {
      found.push(`${name(one)} has letters of ${styleOf(one).fontSize}, into which a phone zooms`);
    }
  }
  return [...new Set(found)];
}