/** Where the keyboard goes. */

export function focusComposer(): void {
  const input = document.querySelector<HTMLTextAreaElement>("#composer");
  input?.focus();
  input?.setSelectionRange(input.value.length, input.value.length);
}

export function focusSearch(): void {
  const input = document.querySelector<HTMLInputElement>("#search");
  input?.focus();
  input?.select();
}
