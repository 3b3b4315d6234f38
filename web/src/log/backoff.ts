/** Waiting times between attempts to connect. */

const BASE_MS = 250;
const CAP_MS = 10_000;

/**
 * Milliseconds to wait before attempt `tries` (1, 2, 3 ...): exponential, the upper half drawn at
 * random, so that clients which lost a server together do not come back together.
 */
export function backoff(tries: number, random: number = Math.random()): number {
  const full = Math.min(CAP_MS, BASE_MS * 2 ** (tries - 1));
  return full / 2 + (full / 2) * random;
}
