/** Line icons on a 20 px grid, and the mark. All are decoration: their buttons carry the labels. */

import type { ComponentChildren } from "preact";

function Icon({ children }: { children: ComponentChildren }) {
  return (
    <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
      {children}
    </svg>
  );
}

const line = (d: string) => () => (
  <Icon>
    <path d={d} />
  </Icon>
);

export const Plus = line("M10 4v12M4 10h12");
export const Panel = line("M3 5.5A1.5 1.5 0 0 1 4.5 4h11A1.5 1.5 0 0 1 17 5.5v9a1.5 1.5 0 0 1-1.5 1.5h-11A1.5 1.5 0 0 1 3 14.5zM8 4v12");
export const Search = line("M9 4a5 5 0 1 0 0 10A5 5 0 0 0 9 4m3.6 8.6L16.5 16.5");
export const Pencil = line("M13.5 4.5l2 2L7 15l-2.800.8L5 13zM12 6l2 2");
export const Bin = line("M4 6h12M8 6V4h4v2M5.5 6l.7 10h7.6l.7-10M8.5 9v4.5M11.5 9v4.5");
export const Send = line("M10 16V4.5M5 9.5l5-5 5 5");
export const Copy = line("M7.5 7.5h8v8h-8zM12.5 7.5v-3h-8v8h3");
export const Check = line("M4.5 10.5l3.5 3.5 7.5-8");
export const Up = line("M6.5 16.5v-8l3.5-5c1.200 0 1.800.9 1.5 2L11 8h4.5c.9 0 1.5.8 1.300 1.700l-1.200 5.5c-.2.8-.8 1.300-1.6 1.300zM6.5 8.5h-3v8h3");
export const Down = line("M13.5 3.5v8l-3.5 5c-1.200 0-1.800-.9-1.5-2L9 12H4.5c-.9 0-1.5-.8-1.300-1.700l1.200-5.5c.2-.8.8-1.300 1.6-1.300zM13.5 11.5h3v-8h-3");
export const Arrow = line("M10 4v11.5M5 10.5l5 5 5-5");
export const Chevron = line("M8 5.5l4.5 4.5L8 14.5");
export const Cross = line("M5.5 5.5l9 9M14.5 5.5l-9 9");
export const Sun = line("M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.300 4.300l1.100 1.100M14.6 14.6l1.100 1.100M4.300 15.700l1.100-1.100M14.6 5.400l1.100-1.100");
export const Moon = line("M16 11.800A6.5 6.5 0 0 1 8.200 4a6.5 6.5 0 1 0 7.800 7.800");
export const Screen = line("M3 4.5h14v9H3zM7.5 16.5h5M10 13.5v3");
export const Keys = line("M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M6.5 11.5h7");
export const Warn = line("M10 3.5l7.5 13h-15zM10 8.5v3.5M10 14.300v.1");
export const Stop = () => (
  <Icon>
    <rect class="solid" x="5.5" y="5.5" width="9" height="9" rx="1.5" />
  </Icon>
);

/** The mark: entries on the line of a log, the newest alight. */
export function Mark({ class: name = "mark" }: { class?: string }) {
  return (
    <svg class={name} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path class="rail" d="M5 3.5v17" />
      <path class="entry" d="M5 5.5h14M5 12h9.5" />
      <path class="entry new" d="M12 18.5h3" />
      <circle class="now" cx="5" cy="18.5" r="2.800" />
    </svg>
  );
}
