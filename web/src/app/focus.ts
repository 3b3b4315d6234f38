/** Where the keyboard goes. */

export function focusComposer(): void {
  const input = document.querySelector<HTMLTextAreaElement>("#composer");
  input?.focus();
  input?.setSelectionRange(input.value.length, input.value.length);
}

/** Whether it is there: what is typed next goes into it. */
export function focusSearch(): boolean {
  const input = document.querySelector<HTMLInputElement>("#search");
  input?.focus();
  input?.select();
  return input !== null && document.activeElement === input;
}
