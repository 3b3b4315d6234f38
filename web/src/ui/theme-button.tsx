import { nextTheme, theme, type Theme } from "../app/theme";
import { Moon, Screen, Sun } from "./icons";

const SHAPES: Record<Theme, typeof Sun> = { system: Screen, light: Sun, dark: Moon };

/** Goes round: as the system says, light, dark. */
export function ThemeButton() {
  const Shape = SHAPES[theme.value];
  const label = `Theme: ${theme.value}`;
  return (
    <button type="button" class="quiet" aria-label={label} title={label} onClick={nextTheme}>
      <Shape />
    </button>
  );
}
