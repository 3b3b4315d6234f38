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

/** How much longer than growing bodies took, other things have their turn before the next time. */
const LEISURE = 3;
let rest = 0;

/** Bring all growing bodies up to date with the next frame, or later if that took long before. */
export function schedule(): void {
  if (scheduled) return;
  scheduled = true;
  const wait = rest - performance.now();
  if (wait > 0) setTimeout(() => nextFrame(showAll), wait);
  else nextFrame(showAll);
}

function showAll(): void {
  scheduled = false;
  const start = performance.now();
  for (const { stream, text } of growing.values()) stream.show(text(), false);
  const end = performance.now();
  rest = end + (end - start) * LEISURE;
}

// ---------------------------------------------------------------------------- in good time

const waiting = new Map<Element, () => void>();
let pumping = false;

const sight = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) if (isIntersecting) fill(target);
});

/** Do `work` for a body once it is seen, or there is time for it, until the function is called. */
export function later(body: Element, work: () => void): () => void {
  waiting.set(body, work);
  sight.observe(body);
  pump();
  return () => {
    waiting.delete(body);
    sight.unobserve(body);
  };
}

function fill(body: Element): void {
  const work = waiting.get(body);
  waiting.delete(body);
  sight.unobserve(body);
  work?.();
}

/** How long one round of work may take (ms): a part of a frame. */
const ROUND_MS = 6;
/** Time between rounds, in which the page answers to its user (ms). */
const PAUSE_MS = 10;

/** Fill what waits, the newest first. */
function pump(): void {
  if (pumping) return;
  pumping = true;
  setTimeout(() => {
    pumping = false;
    const end = performance.now() + ROUND_MS;
    const bodies = [...waiting.keys()];
    while (bodies.length && performance.now() < end) fill(bodies.pop()!);
    if (bodies.length) pump();
  }, PAUSE_MS);
}
