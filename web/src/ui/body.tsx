/** The text of an assistant's message: a place the framework leaves to a BlockStream. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { grow, later } from "../app/bodies";
import type { MessageState } from "../log/state";
import { BlockStream } from "../markdown/stream";

interface Props {
  message: MessageState;
  /** What it says now. */
  text: string;
  /** Whether all of its content is text, so that it can grow without a render. */
  plain: boolean;
  /** Whether it stands so far up that it can wait for its first text. */
  far: boolean;
}

export function Body({ message, text, plain, far }: Props) {
  const root = useRef<HTMLDivElement>(null);
  const stream = useRef<BlockStream | null>(null);
  const streaming = message.status === "streaming";

  useLayoutEffect(() => {
    const show = () => (stream.current ??= new BlockStream(root.current!)).show(text, !streaming);
    if (far && !streaming && !stream.current) return later(root.current!, show);
    return show();
  });
  useLayoutEffect(() => {
    if (streaming && plain) return grow(message.id, { stream: stream.current!, text: () => message.content });
    return undefined;
  }, [streaming, plain, message]);

  return <div ref={root} class={streaming ? "md streaming" : "md"} />;
}
