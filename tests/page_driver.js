// page_driver.js -- run inside a page by tests/program_page.sh: uses the page as a person does and
// writes what it found into the document, for the script to read. `plan` says what to expect.
'use strict';
(async function () {
  const failed = [];
  let checks = 0;
  const expect = (condition, what) => { checks++; if (!condition) failed.push(what); };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const byId = (id) => document.getElementById(id);
  const click = (element) => element.dispatchEvent(new MouseEvent('click', { bubbles: true }));
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
  const nodes = () => [...document.querySelectorAll('#boxes .node')];
  const named = (name) => nodes().find((node) => node.querySelector('text').textContent === name);
  const type = async (text) => {
    byId('search').value = text;
    byId('search').dispatchEvent(new Event('input', { bubbles: true }));
    await wait(300);
  };

  await wait(50);
  expect(nodes().length === plan.nodes, `${nodes().length} nodes are drawn, expected ${plan.nodes}`);
  expect(byId('edges').getAttribute('d').length > 20, 'no edges are drawn');
  expect(byId('summary').textContent.includes('lines read'), 'no coverage line');
  expect(window.hacked === undefined, 'text of the log ran as a script');
  expect(document.images.length === 0, 'text of the log became an element');

  // A search marks its hits, and going to them selects.
  await type(plan.search);
  const hits = document.querySelectorAll('#boxes .node.hit').length;
  expect(hits === plan.hits, `${hits} nodes are marked for '${plan.search}', expected ${plan.hits}`);
  expect(/^\d+ hits$/.test(byId('hits').textContent), `hit count shows '${byId('hits').textContent}'`);
  click(byId('next'));
  expect(document.querySelectorAll('#boxes .node.selected').length === 1, 'the next hit is not selected');
  expect(byId('details').querySelector('mark') !== null, 'hits are not marked in the details');
  press('Escape');
  expect(document.querySelectorAll('#boxes .node.hit').length === 0, 'Escape leaves marks');

  // A click on a node shows its details, its kernel and the kernel's code.
  const node = named(plan.node);
  expect(node !== undefined, `no node ${plan.node}`);
  if (node) {
    click(node.querySelector('rect'));
    const text = byId('details').textContent;
    for (const part of plan.details) expect(text.includes(part), `details of ${plan.node} lack '${part}'`);
    expect(node.classList.contains('selected'), 'a click does not select');
    expect(location.hash.includes('node='), 'the address does not keep the node');
  }
  if (plan.kernel) {
    click([...document.querySelectorAll('#nav button')].find((button) => button.title === plan.kernel));
    expect(byId('details').querySelector('pre') !== null, 'a kernel shows no code');
    expect(byId('details').querySelector('pre .word') !== null, 'code is not highlighted');
    expect(document.querySelectorAll('#boxes .node.related').length > 0, 'a kernel marks no nodes');
  }

  // Table, zoom, tabs, colours.
  press('t');
  expect(!byId('table').hidden, 'no table');
  expect(document.querySelectorAll('#table tbody tr').length === nodes().length, 'the table has other rows');
  click(document.querySelector('#table tbody tr'));
  expect(document.querySelectorAll('#table tr.selected').length === 1, 'a row does not select');
  press('t');
  const before = byId('world').getAttribute('transform');
  press('+');
  expect(byId('world').getAttribute('transform') !== before, '+ does not zoom');
  byId('picture').dispatchEvent(new WheelEvent('wheel', { deltaY: 240, clientX: 300, clientY: 300, cancelable: true }));
  press('ArrowDown');
  press('0');
  const tab = document.querySelector('#nav [aria-current="true"]');
  press(']');
  const tabs = document.querySelectorAll('#nav button:not(.kernel-item)').length;
  expect(tabs === 1 || document.querySelector('#nav [aria-current="true"]').textContent !== tab.textContent, '] stays');
  press('[');
  const paper = getComputedStyle(document.body).backgroundColor;
  press('d');
  expect(getComputedStyle(document.body).backgroundColor !== paper, 'dark and light look the same');
  press('d');
  document.body.dataset.result = failed.length ? 'FAILED ' + failed.join('; ') : `passed ${checks} checks`;
})().catch((error) => { document.body.dataset.result = 'FAILED ' + error; });
