// Keeps the figures on a page fresh, while somebody looks at it. The page is whole without.

const EVERY = 5000;
const LONGEST = 60000;
const shown = document.querySelector("[data-figures]");
const stale = document.querySelector("[data-stale]");
let pause = EVERY;

async function refresh() {
  const answer = await fetch(shown.dataset.figures, { cache: "no-store" });
  if (!answer.ok) throw new Error(`${answer.status}`);
  const figures = await answer.json();
  for (const one of shown.querySelectorAll("[data-figure]")) {
    const text = figures[one.dataset.figure];
    if (text !== undefined && one.textContent !== text) one.textContent = text;
  }
}

async function turn() {
  if (!document.hidden) {
    try {
      await refresh();
      pause = EVERY;
      stale.hidden = true;
    } catch {
      pause = Math.min(pause * 2, LONGEST);
      stale.hidden = false;
    }
  }
  setTimeout(turn, pause * (0.75 + Math.random() / 2));
}

if (shown && stale) setTimeout(turn, EVERY);
