/** The text of an assistant's message: a place the framework leaves to a BlockStream. */

import { useLayoutEffect, useRef } from "preact/hooks";
import { grow } from "../app/bodies";
import type { MessageState } from "../log/state";
import { BlockStream } from "../markdown/stream";

export function Body({ message }: { message: MessageState; stamp: string }) {
  const root = useRef<HTMLDivElement>(null);
  const stream = useRef<BlockStream | null>(null);
  const streaming = message.status === "streaming";

  useLayoutEffect(() => {
    stream.current ??= new BlockStream(root.current!);
    stream.current.show(message.content, !streaming);
  });
  useLayoutEffect(() => {
    if (streaming) return grow(message.id, { stream: stream.current!, text: () => message.content });
    return undefined;
  }, [streaming, message]);

  return <div ref={root} class={streaming ? "md streaming" : "md"} dir="auto" />;
}
