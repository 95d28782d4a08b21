// Elements. Whatever comes from a job becomes a text or an attribute of ours, never markup.

/** An element with attributes and children; texts become text nodes. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets a text where it differs: nothing is announced or selected again for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Names of any length and direction, kept to themselves. */
export function name(text, kind = "bdi") {
  return make(kind, { class: "name" }, text);
}

/** The path of a job's picture. */
export function address(id, rest) {
  return `jobs/${encodeURIComponent(id)}/${rest}`;
}
