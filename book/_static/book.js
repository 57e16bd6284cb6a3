// The theme lets the keyboard reach code that scrolls sideways, and looks for such code when the window changes its
// size. What a reader unfolds has to be looked at too.
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true);
