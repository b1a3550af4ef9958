// Keeps the figures on a page fresh, follows messages, and has sliders set times, while somebody
// looks at the page. It is whole without.

const EVERY = 5000;
const LONGEST = 60000;

/** Spread waiting over time, so that pages do not come all at once. */
function around(pause) {
  return pause * (0.75 + Math.random() / 2);
}

function keepFresh(shown, stale) {
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
    setTimeout(turn, around(pause));
  }

  setTimeout(turn, EVERY);
}

const MOST_ROWS = 200;
const MOST_TEXT = 4_000_000;
const SOON = 1000;
const ENDED = "The session has ended: load the page again to log in.";

/** Follows a tenant's messages into a table, the newest first, when asked to and in sight. */
class Tail {
  constructor(place, template) {
    this.address = place.dataset.tail;
    this.button = place.querySelector("button");
    this.state = place.querySelector("[role=status]");
    this.passed = place.querySelector("[data-passed]");
    this.row = template.content.firstElementChild;
    this.table = document.querySelector("table tbody");
    this.cursor = "";
    this.leftOut = 0;
    this.going = null;
    this.button.addEventListener("click", () => this.want(!this.wanted));
    document.addEventListener("visibilitychange", () => this.looked());
    place.hidden = false;
  }

  get wanted() {
    return this.button.getAttribute("aria-pressed") === "true";
  }

  want(wanted, text = "") {
    this.button.setAttribute("aria-pressed", `${wanted}`);
    this.button.textContent = wanted ? "Stop" : "Follow";
    this.say(text);
    this.looked();
  }

  say(text) {
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  /** Go, or stop, as somebody wants it and looks. What came meanwhile is not made up for. */
  looked() {
    const now = this.wanted && !document.hidden;
    if (now && !this.going) {
      this.going = new AbortController();
      this.go(this.going);
    } else if (!now && this.going) {
      this.going.abort();
      this.going = null;
      this.cursor = "";
    }
  }

  async go(going) {
    let pause = SOON;
    while (!going.signal.aborted) {
      try {
        await this.follow(going.signal);
        pause = SOON;
      } catch {
        if (going.signal.aborted) return;
        this.say("The server does not answer; trying again.");
        pause = Math.min(pause * 2, LONGEST);
      }
      await new Promise((resolve) => setTimeout(resolve, around(pause)));
    }
  }

  async follow(signal) {
    const cursor = this.cursor && `&cursor=${encodeURIComponent(this.cursor)}`;
    const answer = await fetch(this.address + cursor, { cache: "no-store", signal });
    if (answer.status === 400) this.cursor = "";
    if ([401, 403, 404].includes(answer.status)) {
      this.want(false, answer.status === 404 ? "There is no such tenant any more." : ENDED);
      return;
    }
    if (!answer.ok) throw new Error(`${answer.status}`);
    this.say("Following.");
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      if (rest.length > MOST_TEXT) throw new Error("too long");
      for (const one of events) this.take(one);
    }
  }

  take(event) {
    const lines = event.split("\n");
    const value = (name) => lines.find((one) => one.startsWith(name))?.slice(name.length);
    const data = value("data: ");
    if (data === undefined) return;
    this.cursor = value("id: ") || this.cursor;
    const { rows, left_out: leftOut } = JSON.parse(data);
    for (const row of rows) this.add(row);
    if (leftOut) {
      this.leftOut += leftOut;
      this.passed.textContent = `${this.leftOut.toLocaleString("en")} were too many to be shown.`;
    }
  }

  add(row) {
    this.table.querySelector("[data-none]")?.remove();
    const shown = this.row.cloneNode(true);
    for (const cell of shown.querySelectorAll("[data-cell]")) {
      cell.textContent = row[cell.dataset.cell] ?? "";
    }
    if (row.link) shown.querySelector("a").setAttribute("href", row.link);
    this.table.prepend(shown);
    while (this.table.rows.length > MOST_ROWS) this.table.lastElementChild.remove();
  }
}

/** Has a slider over seconds since 1970 set the field for a time that it belongs to. */
function slide(slider) {
  const field = document.getElementById(slider.dataset.sets);

  function follow() {
    const at = Date.parse(`${field.value}Z`);
    if (!Number.isNaN(at)) slider.value = `${at / 1000}`;
  }

  slider.addEventListener("input", () => {
    field.value = new Date(slider.value * 1000).toISOString().slice(0, 19);
    slider.setAttribute("aria-valuetext", `${field.value} UTC`);
  });
  field.addEventListener("input", follow);
  follow();
  slider.hidden = false;
}

/** Has an output tell the number that its slider is at. */
function tell(output) {
  const slider = document.getElementById(output.htmlFor.value);
  slider.addEventListener("input", () => (output.value = slider.value));
}

const shown = document.querySelector("[data-figures]");
const stale = document.querySelector("[data-stale]");
if (shown && stale) keepFresh(shown, stale);

const place = document.querySelector("[data-tail]");
const template = document.querySelector("[data-row]");
if (place && template) new Tail(place, template);

for (const output of document.querySelectorAll("output[for]")) tell(output);
for (const slider of document.querySelectorAll("[data-sets]")) slide(slider);
