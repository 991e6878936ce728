// Elements by hand: text only ever becomes text.

const $ = (id) => document.getElementById(id);

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "listen") {
      for (const [event, heard] of Object.entries(value)) node.addEventListener(event, heard);
    } else {
      put(node, name, value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element: el("p", {class: "about"}, "text", element). */
function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function shape(tag, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Sets or removes an attribute, and leaves the document alone when nothing changes. */
function put(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else {
    const text = value === true ? "" : String(value);
    if (node.getAttribute(name) !== text) node.setAttribute(name, text);
  }
}

/** Sets the text of an element that has nothing else. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`: kept by key, so that focus, open details and scroll positions stay.
 * `make(item)` gives an object with `node`, `update(it, item)` brings it up to date.
 */
function keyed(parent, items, key, make, update) {
  const known = (parent.perchKnown ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [name, it] of known) {
    if (!wanted.has(name)) {
      it.node.remove();
      known.delete(name);
    }
  }
  items.forEach((item, position) => {
    const name = key(item);
    let it = known.get(name);
    if (!it) {
      it = make(item);
      known.set(name, it);
    }
    if (parent.children[position] !== it.node) parent.insertBefore(it.node, parent.children[position] ?? null);
    update(it, item);
  });
}

/** A table of rows of texts; the first cell of each is its heading. */
function table(caption, heads, rows) {
  return el("table", { class: "plain" },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map(([first, ...rest]) =>
      el("tr", {}, el("th", { scope: "row" }, first), ...rest.map((cell, i) => el("td", { "data-head": heads[i + 1] }, cell))))));
}
