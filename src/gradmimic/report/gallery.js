// The gallery: samples are searched, sorted and decided on.
//
// What comes from data stays text: it enters the page as textContent, as an attribute that takes no
// code, or as the src of a picture that was encoded anew. A row is a sample's place in the columns,
// which stand lowest score first; a place is where a row stands in what is shown now.
(() => {
  "use strict";
  const block = document.getElementById("gallery-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const PAGE = 48; // cards in the page at a time, so that it is as quick with 50,000 samples
  const one = data.noun.slice(0, -1);
  const STORED = `gradmimic-review:${data.log}`;
  const element = (id) => document.getElementById(id);
  const list = element("g-list");
  const tools = element("g-tools").querySelectorAll("input, select"); // pairs have no classes
  const fields = Object.fromEntries(Array.from(tools, (field) => [field.id.slice(2), field]));
  let threshold = data.threshold;

  // --- Decisions: row → {decision, label}, kept in the browser and exported as JSON lines.

  const KEEP = { decision: "keep", label: null };
  const REMOVE = { decision: "remove", label: null };
  const decisions = new Map();
  let elsewhere = []; // decisions on samples of this log that are not on this page
  let saved = true;
  const undone = []; // what to go back to, the latest last
  const rowOf = new Map(data.ids.map((id, row) => [id, row]));

  function load() {
    decisions.clear();
    elsewhere = [];
    try {
      for (const entry of JSON.parse(localStorage.getItem(STORED) || "[]")) {
        const [id, decision, label] = entry;
        if (rowOf.has(id)) decisions.set(rowOf.get(id), { decision, label });
        else elsewhere.push(entry);
      }
    } catch {
      saved = false; // no storage here, or not ours: the page works without it
    }
  }

  function all() {
    const here = Array.from(decisions, ([row, said]) => [data.ids[row], said.decision, said.label]);
    return here.concat(elsewhere);
  }

  function save() {
    saved = true;
    try {
      localStorage.setItem(STORED, JSON.stringify(all()));
    } catch {
      saved = false;
    }
  }

  function decide(row, said) {
    undone.push({ row, before: decisions.get(row) });
    put(row, said);
    tell(`${one} ${data.ids[row]}: ${spoken(row)}`);
  }

  function put(row, said) {
    if (said) decisions.set(row, said);
    else decisions.delete(row);
    save();
    refresh(row);
  }

  function undo() {
    const last = undone.pop();
    if (!last) return;
    put(last.row, last.before);
    const place = view.rows.indexOf(last.row);
    if (place >= 0) go(place);
    tell(`undone: ${one} ${data.ids[last.row]}`);
  }

  function lines() {
    const head = { gradmimic_review: 1, run: data.run, log: data.log };
    const rows = all().map(([id, decision, label]) => {
      // Integers are written as digits: beyond 2⁵³ a number of this language would round them.
      const written = data.integers ? id : JSON.stringify(id);
      const more = label === null ? "" : `,"label":${JSON.stringify(label)}`;
      return `{"sample_id":${written},"decision":"${decision}"${more}}`;
    });
    return `${[JSON.stringify(head), ...rows].join("\n")}\n`;
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines()], { type: "application/jsonl" }));
    link.download = `review-${data.run.replace(/[^\p{L}\p{N}._-]+/gu, "_")}.jsonl`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // --- What is shown: which rows, in which order, and which page of them.

  const view = { rows: [], page: 0, place: 0 };
  const kept = (row) => {
    const said = decisions.get(row);
    return said ? said.decision === "keep" : data.keep[row] === "1";
  };
  const nameOf = (column, row) => data[column] && data.classes[data[column][row]];

  let searched = null; // of each row what a search looks at, made when it is first needed
  const words = (id, row) =>
    [id, nameOf("given", row), nameOf("suggested", row), data.texts[row]].join("\n").toLowerCase();

  const fromBorder = (row) => {
    const [own, border] = threshold === null ? [data.p[row], 0.5] : [data.score[row], threshold];
    return own === null ? Infinity : Math.abs(own - border);
  };
  const ORDERS = {
    lowest: (row) => row,
    highest: (row) => -row,
    borderline: fromBorder,
    id: (row) => (data.integers ? Number(data.ids[row]) : data.ids[row]),
    given: (row) => nameOf("given", row),
  };

  function find() {
    const value = (name) => (fields[name] ? fields[name].value : "");
    const wanted = value("search").trim().toLowerCase();
    if (wanted) searched ??= data.ids.map(words);
    const tests = [
      [wanted, (row) => searched[row].includes(wanted)],
      [value("given"), (row) => data.given[row] === Number(value("given"))],
      [value("suggested"), (row) => data.suggested[row] === Number(value("suggested"))],
      [value("state"), (row) => kept(row) === (value("state") === "1")],
      [value("reviewed"), (row) => decisions.has(row) === (value("reviewed") === "1")],
    ].filter(([asked]) => asked !== "").map(([, test]) => test);
    const rows = data.ends[value("end")] || data.ids.map((_, row) => row);
    const fitting = rows.filter((row) => tests.every((test) => test(row)));
    const keyed = fitting.map((row) => ({ row, key: ORDERS[value("sort")](row) }));
    keyed.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : a.row - b.row));
    Object.assign(view, { rows: keyed.map(({ row }) => row), page: 0, place: 0 });
    draw();
    tell();
  }

  // --- The page: cards, of which one can be reached by Tab and the others by arrows.

  const cards = new Map(); // row → its parts, of the page that is shown

  function make(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function breakable(made) { // a long name, after its underscores
    const parts = made.textContent.split("_");
    made.replaceChildren(...parts.flatMap((part, i) => (i ? ["_", make("wbr"), part] : [part])));
    return made;
  }

  const number = (value, digits) =>
    value === null ? "–" : String(Number(value.toPrecision(digits))).replace("-", "−");

  const watching = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watching.unobserve(target);
      target.src = data.pictures[target.dataset.row];
    }
  }, { rootMargin: "600px" });

  function picture(row) {
    const content = data.pictures[row];
    if (content === undefined) return [];
    if (content === "") return [make("p", "facts", "This picture cannot be decoded.")];
    const image = make("img", content.startsWith("data:image/png") ? "tiny" : "");
    image.alt = `picture of ${data.ids[row]}`;
    image.decoding = "async";
    image.dataset.row = row;
    watching.observe(image);
    return [image];
  }

  const text = (row) => (row in data.texts ? [make("p", "text", data.texts[row])] : []);

  function labels(row) {
    const table = make("dl");
    const bad = data.bad && data.bad[row] === "1";
    const mark = data.bad ? (bad ? "✗ " : "✓ ") : "";
    const tone = data.bad ? (bad ? "wrong" : "right") : "";
    for (const name of ["given", "suggested", "true"]) {
      if (!data[name]) continue;
      const own = name === "given" ? [tone, mark + nameOf(name, row)] : ["", nameOf(name, row)];
      table.append(make("dt", "", name), breakable(make("dd", ...own)));
    }
    if (!data.given && data.bad) {
      table.append(make("dt", "", "caption"));
      table.append(make("dd", tone, mark + (bad ? "of another picture" : "its own")));
    }
    return table.childElementCount ? [table] : [];
  }

  function facts(row) {
    const told = [`score ${number(data.score[row], 3)}`];
    const good = data.given ? "p(clean)" : "p(good)";
    if (data.p[row] !== null) told.push(`${good} ${data.p[row].toFixed(2)}`);
    for (const [name, values] of Object.entries(data.facts)) {
      if (values[row] !== undefined) told.push(`${name} ${number(values[row], 2)}`);
    }
    return make("p", "facts", `${data.ids[row]} · ${told.join(" · ")}`);
  }

  const same = (a, b) => Boolean(a) && a.decision === b.decision && a.label === b.label;
  const suggestion = (row) =>
    data.suggested && data.suggested[row] !== data.given[row] ? nameOf("suggested", row) : null;

  function buttons(row) {
    const choices = [["Keep", KEEP], ["Remove", REMOVE]];
    const label = suggestion(row);
    if (label !== null) choices.push([`Keep as ${label}`, { decision: "keep", label }]);
    return choices.map(([text, said]) => {
      const button = make("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => {
        decide(row, same(decisions.get(row), said) ? undefined : said); // pressed again: released
      });
      return { button, said };
    });
  }

  function spoken(row) {
    const said = decisions.get(row);
    if (!said) return data.reasons[data.reason[row]];
    const as = said.label === null ? "" : ` as ${said.label}`;
    return `${said.decision === "keep" ? "kept" : "removed"} by you${as}`;
  }

  function card(row, place) {
    const box = make("article", "g-card");
    box.dataset.place = place;
    const verdict = make("p", "verdict");
    const choices = buttons(row);
    const below = make("div", "g-buttons");
    below.append(...choices.map(({ button }) => button));
    box.append(...picture(row), ...text(row), ...labels(row), facts(row), verdict, below);
    cards.set(row, { box, verdict, choices });
    refresh(row);
    return box;
  }

  function refresh(row) {
    const parts = cards.get(row);
    if (parts) {
      const said = decisions.get(row);
      parts.box.classList.toggle("decided", Boolean(said));
      parts.verdict.textContent = spoken(row);
      const labelled = ["given", "suggested"].filter((name) => data[name]);
      const told = labelled.map((name) => `${name} ${nameOf(name, row)}`);
      told.push(`score ${number(data.score[row], 3)}`, spoken(row));
      parts.box.setAttribute("aria-label", `${one} ${data.ids[row]}, ${told.join(", ")}`);
      for (const choice of parts.choices) {
        choice.button.setAttribute("aria-pressed", String(same(said, choice.said)));
      }
    }
    const count = decisions.size + elsewhere.length;
    element("g-undo").disabled = undone.length === 0;
    element("g-export").disabled = count === 0;
    element("g-export").textContent = `Export ${count.toLocaleString("en")} decisions`;
  }

  function draw() {
    watching.disconnect();
    cards.clear();
    const start = view.page * PAGE;
    const rows = view.rows.slice(start, start + PAGE);
    const items = rows.map(() => make("li"));
    items.forEach((item, i) => item.append(card(rows[i], start + i)));
    list.replaceChildren(...items);
    const pages = Math.max(1, Math.ceil(view.rows.length / PAGE));
    element("g-page").textContent = `page ${view.page + 1} of ${pages.toLocaleString("en")}`;
    const [before, after] = element("g-pages").querySelectorAll("button");
    before.disabled = view.page === 0;
    after.disabled = view.page + 1 >= pages;
    reach(view.place);
  }

  // Let Tab reach this card and its buttons, and no other one.
  function reach(place) {
    view.place = place;
    for (const [row, { box, choices }] of cards) {
      const own = view.rows[place] === row;
      box.tabIndex = own ? 0 : -1;
      for (const { button } of choices) button.tabIndex = own ? 0 : -1;
    }
  }

  function go(place) {
    if (!view.rows.length) return;
    const to = Math.max(0, Math.min(view.rows.length - 1, place));
    const page = Math.floor(to / PAGE);
    if (page !== view.page) {
      Object.assign(view, { page, place: to });
      draw();
    }
    reach(to);
    cards.get(view.rows[to]).box.focus();
  }

  function turn(by) {
    const last = Math.floor((view.rows.length - 1) / PAGE);
    go(Math.max(0, Math.min(last, view.page + by)) * PAGE);
  }

  function tell(news) {
    const [shown, of] = [view.rows.length, data.ids.length].map((count) => count.toLocaleString("en"));
    const keeping = [...decisions.values()].filter((said) => said.decision === "keep").length;
    const parts = [`${shown} of ${of} ${data.noun}`];
    parts.push(`${decisions.size} reviewed (${keeping} kept, ${decisions.size - keeping} removed)`);
    if (news) parts.push(news);
    if (!saved) parts.push("this browser cannot store decisions: export them before you leave");
    element("g-status").textContent = parts.join("; ");
  }

  // --- Keys and controls.

  function columns() {
    const tops = Array.from(cards.values(), ({ box }) => box.offsetTop);
    return tops.filter((top) => top === tops[0]).length;
  }

  const KEYS = {
    ArrowRight: (place) => go(place + 1),
    ArrowLeft: (place) => go(place - 1),
    ArrowDown: (place) => go(place + columns()),
    ArrowUp: (place) => go(place - columns()),
    Home: () => go(view.page * PAGE),
    End: () => go(view.page * PAGE + cards.size - 1),
    PageDown: () => turn(1),
    PageUp: () => turn(-1),
    u: undo,
    k: (place) => judge(place, KEEP),
    r: (place) => judge(place, REMOVE),
    l: (place) => {
      const label = suggestion(view.rows[place]);
      if (label !== null) judge(place, { decision: "keep", label });
    },
  };

  function judge(place, said) {
    decide(view.rows[place], said);
    go(place + 1);
  }

  list.addEventListener("keydown", (event) => {
    const box = event.target.closest(".g-card");
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action(Number(box.dataset.place));
  });
  list.addEventListener("focusin", (event) => {
    const box = event.target.closest(".g-card");
    if (box) reach(Number(box.dataset.place));
  });
  element("g-pages").addEventListener("click", (event) => {
    if (event.target.value) turn(Number(event.target.value));
  });
  element("g-undo").addEventListener("click", undo);
  element("g-export").addEventListener("click", download);
  fields.end.addEventListener("input", () => {
    if (fields.end.value) fields.sort.value = fields.end.value; // before find, below, looks there
  });
  for (const field of Object.values(fields)) field.addEventListener("input", find);
  addEventListener("storage", (event) => {
    if (event.key !== STORED) return; // another tab decided
    load();
    cards.forEach((_, row) => refresh(row));
    tell();
  });
  document.addEventListener("gradmimic:threshold", (event) => {
    threshold = event.detail.threshold;
    if (fields.sort.value === "borderline") find();
  });

  for (const name of ["given", "suggested"]) {
    if (!fields[name]) continue;
    const there = Array.from(new Set(data[name])).sort((a, b) => a - b);
    fields[name].append(...there.map((place) => {
      const option = make("option", "", data.classes[place]);
      option.value = place;
      return option;
    }));
  }
  load();
  find();
  element("g-plain").hidden = true;
  element("g-live").hidden = false;
})();
