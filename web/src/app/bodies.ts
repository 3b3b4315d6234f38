/**
 * The hot path: text of messages that are being written goes to their bodies once a frame,
 * without a render of the framework.
 */

import type { BlockStream } from "../markdown/stream";

interface Body {
  stream: BlockStream;
  text: () => string;
}

const growing = new Map<string, Body>();
let scheduled = false;

/** Let a body follow its text until the returned function is called. */
export function grow(id: string, body: Body): () => void {
  growing.set(id, body);
  return () => {
    if (growing.get(id) === body) growing.delete(id);
  };
}

/** Run `work` with the next frame; hidden tabs have no frames, so there with a timer. */
export function nextFrame(work: () => void): void {
  if (document.visibilityState === "visible") requestAnimationFrame(work);
  else setTimeout(work, 250);
}

/** Bring all growing bodies up to date with the next frame. */
export function schedule(): void {
  if (scheduled) return;
  scheduled = true;
  nextFrame(() => {
    scheduled = false;
    for (const { stream, text } of growing.values()) stream.show(text(), false);
  });
}
