// Markdown of a model's answer as a fragment. HTML in the answer stays text, and images become links: the page loads
// nothing that an answer names. DOMPurify then lets the tags and attributes below pass, and nothing else.

import { Marked } from "./vendor/marked.esm.js";
import DOMPurify from "./vendor/purify.es.js";
import { copyButton, h } from "./dom.js";

const ALLOWED = {
  ALLOWED_TAGS: ("p br hr strong em del code pre blockquote ul ol li a h3 h4 h5 h6 table thead tbody tr th td").split(" "),
  ALLOWED_ATTR: ["href", "title", "start", "align", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const escaped = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // below the headings of the page
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
  },
});

export function render(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of fragment.querySelectorAll("pre")) {
    const code = block.textContent;
    block.tabIndex = 0; // it scrolls, also by keyboard
    const frame = h("div", { class: "code" });
    block.replaceWith(frame);
    frame.append(block, copyButton(() => code, "code"));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "scroll", role: "region", "aria-label": "Table", tabindex: "0" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}
