// The page's theme as something that canvases are drawn anew for.

import { useEffect, useState } from "preact/hooks";

/** @returns {string} a text that changes with the theme */
export function useTheme() {
  const read = () => `${document.documentElement.dataset.theme ?? ""}${matchMedia("(prefers-color-scheme: dark)").matches}`;
  const [theme, setTheme] = useState(read);
  useEffect(() => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const look = () => setTheme(read());
    addEventListener("moeworks-theme", look);
    system.addEventListener("change", look);
    return () => {
      removeEventListener("moeworks-theme", look);
      system.removeEventListener("change", look);
    };
  }, []);
  return theme;
}
