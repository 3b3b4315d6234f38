/**
 * Keeps a growing list at its end, unless the reader has scrolled away.
 *
 * Who scrolled is told by position, not by time: every position set here is remembered, and a
 * scroll event that shows another one is the reader's.
 */

import { signal } from "@preact/signals";

/** Upward movement that means "let me read" (px). */
const UNPIN = 3;
/** Coming this near to the end means "follow again" (px). */
const REPIN = 60;
/** From this far the way back is offered (px). */
const FAR = 200;

export class StickToBottom {
  /** Whether the end is far enough away to offer a jump. */
  readonly far = signal(false);
  private pinned = true;
  private expected = -1;
  private last = 0;
  private readonly sizes: ResizeObserver;

  constructor(
    private readonly scroller: HTMLElement,
    content: HTMLElement,
  ) {
    this.sizes = new ResizeObserver(() => this.settle());
    this.sizes.observe(content);
    this.sizes.observe(scroller);
    scroller.addEventListener("scroll", this.scrolled, { passive: true });
  }

  dispose(): void {
    this.sizes.disconnect();
    this.scroller.removeEventListener("scroll", this.scrolled);
  }

  /** Go to the end and stay there. */
  jump(): void {
    this.pinned = true;
    this.settle();
  }

  private get distance(): number {
    const { scrollHeight, clientHeight, scrollTop } = this.scroller;
    return scrollHeight - clientHeight - scrollTop;
  }

  private settle(): void {
    if (this.pinned && this.distance > 0.5) {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      this.expected = this.last = this.scroller.scrollTop;
    }
    this.judge();
  }

  private readonly scrolled = (): void => {
    const top = this.scroller.scrollTop;
    if (Math.abs(top - this.expected) > 1) {
      this.expected = -1;
      if (top < this.last - UNPIN && this.distance > 1) this.pinned = false;
      else if (top > this.last && this.distance < REPIN) this.pinned = true;
    }
    this.last = top;
    this.judge();
  };

  private judge(): void {
    const { distance } = this;
    if (distance > FAR) this.far.value = true;
    else if (distance < REPIN) this.far.value = false;
  }
}
