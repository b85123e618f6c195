"""What is left of a page for `tools.docs_pictures`: scripts that run on it in the browser."""

CHARTS = """
const wanted = %r, kept = [];
const explained = [...document.querySelectorAll('body > *')];
const first = explained.findIndex(one => one.tagName == 'H2');
if (%s) kept.push(...explained.slice(0, first).filter(one => one.matches('p.legend')));
for (const title of wanted) {
  const heading = [...document.querySelectorAll('h2')].find(one => one.textContent == title);
  kept.push(heading, heading.nextElementSibling, heading.nextElementSibling.nextElementSibling);
}
document.body.replaceChildren(...kept);
document.body.style.margin = '0';
document.body.style.padding = '4px 14px 10px';
document.body.style.maxWidth = 'none';
for (const heading of document.querySelectorAll('h2')) heading.style.marginTop = '10px';
"""
"""Leaves some charts of a report; the legend of stages and marks too if that is wanted."""
README = """
const main = document.querySelector('main');
main.style = 'padding: 10px 14px 6px; max-width: none';
const styled = text => document.head.append(
  Object.assign(document.createElement('style'), {textContent: text})
);
const headed = (command, text) => Object.assign(document.createElement('p'), {
  innerHTML: `<code><b>lightning-vlm ${command}</b></code> &nbsp;${text}`,
  style: 'max-width: none; margin: 0 0 6px',
});
"""
"""What both halves of the README's picture begin with."""
PREVIEW = """
const section = document.querySelector('section');
section.querySelector('h3').remove();
section.querySelector('figcaption').remove();
main.replaceChildren(headed('preview', 'what is learned, token by token'), section);
styled(`figure { width: 170px !important } section { margin: 0 !important; padding: 10px 14px }
  pre { font-size: 14px }`);
"""
"""A sample of a preview."""
PROGRESS = """
const found = [...document.querySelectorAll('section')].filter(
  one => one.querySelector('.task').textContent == 'grounding'
).slice(2, 4);
for (const section of found) {
  const cards = [...section.querySelectorAll('.card')];
  const kept = [1, Math.ceil(cards.length / 2), cards.length - 1];
  cards.forEach((card, place) => kept.includes(place) || card.remove());
  section.querySelectorAll('h2, .card .text, .card .soft').forEach(one => one.remove());
  const prompt = section.querySelector('.prompt');
  prompt.textContent = prompt.textContent.replace('<image> ', '');
}
const row = Object.assign(document.createElement('div'), {className: 'row'});
row.append(...found);
const said = 'the same pictures at each validation: <b class=right>right</b> <b class=found>predicted</b>';
main.replaceChildren(headed('fit', said), row);
styled(`.row { display: grid; grid-template-columns: 1fr 1fr; gap: 10px } section { margin: 0 !important;
  padding: 8px 12px } .card { flex: 1 1 0; border: none !important; padding: 0 } .cards { padding: 0 }
  p b.right, p b.found { border: 2px solid #1faa50; padding: 0 .35rem }
  p b.found { border-color: #e614be; border-style: dashed }`);
"""
"""Two samples of a PredictionTable."""
