/** Says why the page does not start. No module: it runs where they do not, in a page that was opened from a file. */

const WHY = location.protocol === "file:"
  ? "This page does not draw when it is opened from a file. Serve its folder, and open the address: python3 -m http.server --directory FOLDER"
  : "The page did not start. Load it again with Shift held, which loads all of it anew; where that does not help, take a newer browser.";

function tell({ target, type }) {
  const isOurs = type === "unhandledrejection" || target === window || target instanceof HTMLScriptElement;
  if (!isOurs || document.body.classList.contains("ready")) return;
  document.getElementById("error").textContent = WHY;
  document.getElementById("error").hidden = false;
  document.getElementById("hint").textContent = "Nothing can be drawn.";
}

addEventListener("error", tell, true);
addEventListener("unhandledrejection", tell);
