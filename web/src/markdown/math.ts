/** TeX as MathML, in a chunk of its own: loaded when the first formula is shown. */

import temml from "temml";
import { sanitizeMath } from "./html";

/** A safe element for a formula; null if it cannot be read. */
export function mathOf(tex: string, display: boolean): Element | null {
  try {
    return sanitizeMath(temml.renderToString(tex, { displayMode: display, throwOnError: true, trust: false }));
  } catch {
    return null;
  }
}
