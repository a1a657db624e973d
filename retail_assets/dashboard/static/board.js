// What the server cannot know: the reader's choice of light or dark, and how long ago a time is now.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try { return localStorage.getItem("board-theme"); } catch { return null; }
  };
  const apply = () => {
    const theme = chosen() ?? (system.matches ? "dark" : "light");
    root.dataset.theme = theme;
    if (typeof setDark === "function") setDark(theme === "dark");
    label();
  };
  // The bar is drawn after this script has run.
  const label = () => {
    const button = document.getElementById("theme");
    const text = root.dataset.theme === "dark" ? "Light" : "Dark";
    if (button && button.textContent !== text) button.textContent = text;
  };
  apply();
  system.addEventListener("change", apply);

  const ago = (seconds) => {
    if (seconds < 1) return "now";
    if (seconds < 120) return `${Math.round(seconds)} s ago`;
    if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
    if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
    return `${Math.round(seconds / 86400)} days ago`;
  };
  const tick = () => {
    for (const each of document.querySelectorAll("time[data-ago]")) {
      const text = ago(Math.max(0, (Date.now() - Date.parse(each.dateTime)) / 1000));
      if (each.textContent !== text) each.textContent = text;
    }
    label();
  };
  setInterval(tick, 1000);

  document.addEventListener("click", (event) => {
    if (event.target.id === "theme") {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("board-theme", next); } catch { /* not kept, then */ }
      apply();
    }
    for (const open of document.querySelectorAll("details.choices[open]"))
      if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const open of document.querySelectorAll("details.choices[open]")) {
      open.open = false;
      open.querySelector("summary").focus();
    }
  });

  // The slider of "Then and now": its label while it moves, the page when it is let go.
  document.addEventListener("input", (event) => {
    const list = event.target.dataset?.moments;
    if (!list) return;
    const moment = JSON.parse(list)[event.target.value];
    document.getElementById("moment").textContent = moment.label;
    event.target.setAttribute("aria-valuetext", moment.label);
  });
  document.addEventListener("change", (event) => {
    const list = event.target.dataset?.moments;
    if (list) location.search = "?at=" + JSON.parse(list)[event.target.value].snapshot;
  });
  addEventListener("load", () => { apply(); tick(); });
})();
