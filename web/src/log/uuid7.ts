/** UUIDv7 (RFC 9562 §5.7): ids made later sort later, also within one millisecond. */

let last = 0;
let counter = 0;

/** A new id in canonical text form. */
export function uuid7(now: number = Date.now()): string {
  if (now > last) {
    last = now;
    counter = crypto.getRandomValues(new Uint16Array(1))[0]! & 0x7ff;
  } else if (++counter > 0xfff) {
    last += 1; // the counter ran over: borrow from the clock, as §6.2 allows
    counter = 0;
  }
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  bytes[0] = 0x80 | (bytes[0]! & 0x3f);
  const time = last.toString(16).padStart(12, "0");
  const tail = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const rand = (0x7000 | counter).toString(16);
  return `${time.slice(0, 8)}-${time.slice(8)}-${rand}-${tail.slice(0, 4)}-${tail.slice(4)}`;
}
