// A term or a citation shows what the glossary or the references say of it: under the mouse, with the keyboard's focus,
// or at a tap. It goes when the mouse and the focus have left both, or with Escape. Without this it is a link.
(() => {
  const MARKED = "a.term, a.cite";
  const root = document.documentElement.dataset.content_root;
  if (!("popover" in HTMLElement.prototype)) return;
  const entry = document.createElement("span");
  entry.className = entry.id = "term-entry";
  entry.popover = "manual";
  let loading, shown, timer, pointer, quiet, width;

  // From disk a page may load a script, and nothing else.
  const load = () => (loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = `${root}_static/terms-entries.js`;
    script.onload = done;
    script.onerror = (error) => {
      loading = undefined; // the next time again
      script.remove();
      failed(error);
    };
    document.head.append(script);
  }));

  function hide() {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    entry.remove();
    shown = null;
  }

  async function show(link, x = 0, y = 0) {
    clearTimeout(timer);
    if (link === shown) return;
    hide();
    shown = link;
    width = innerWidth;
    await load();
    if (link !== shown) return;
    const words = bookEntries[link.hash.slice(1)] ?? bookEntries[link.href];
    if (!words) throw new Error(`${link.href} has no entry`); // it stays a link
    entry.innerHTML = words;
    for (const a of entry.querySelectorAll("a")) {
      if (!/^\w+:/.test(a.getAttribute("href"))) a.href = root + a.getAttribute("href");
    }
    // Right behind its link, where Tab comes next.
    link.after(entry);
    link.setAttribute("aria-describedby", entry.id);
    entry.showPopover();
    // A link of two lines is where the mouse is.
    const lines = [...link.getClientRects()];
    const line = lines.find((box) => y <= box.bottom && x >= box.left && x <= box.right) ?? lines[0];
    const page = document.documentElement;
    const above = line.bottom + entry.offsetHeight > page.clientHeight && line.top > entry.offsetHeight;
    entry.style.left = `${scrollX + Math.max(16, Math.min(line.left, page.clientWidth - entry.offsetWidth - 16))}px`;
    entry.style.top = `${scrollY + (above ? line.top - entry.offsetHeight - 4 : line.bottom + 4)}px`;
  }

  function later(milliseconds, act) {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  }

  document.addEventListener("pointerover", ({ target, pointerType, clientX, clientY }) => {
    if (pointerType !== "mouse") return;
    const link = target.closest(MARKED);
    if (entry.contains(target)) clearTimeout(timer);
    else if (link) later(150, () => show(link, clientX, clientY).catch(hide));
    else if (![shown, ...entry.children].includes(document.activeElement)) later(300, hide);
  });
  document.addEventListener("focusin", ({ target }) => {
    const link = target.closest(MARKED);
    if (quiet || entry.contains(target)) return;
    if (link?.matches(":focus-visible")) show(link).catch(hide);
    else if (link !== shown) hide();
  });
  document.addEventListener("pointerdown", ({ target, pointerType }) => {
    pointer = pointerType;
    if (!entry.contains(target) && target.closest(MARKED) !== shown) hide();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest(MARKED);
    // The second tap, a click and Enter follow the link.
    if (!link || link === shown || pointer === "mouse" || !event.detail) return;
    event.preventDefault();
    show(link).catch(() => link.click());
  });
  addEventListener("resize", () => { if (innerWidth !== width) hide(); }); // its place is another one now
  document.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape" || !shown) return;
    const inside = entry.contains(document.activeElement);
    const link = shown;
    hide();
    quiet = true;
    if (inside) link.focus();
    quiet = false;
  });
})();
