'use strict';
// The data is what html.rs wrote; times are simulated nanoseconds.
const D = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

// --- the model ---

const EVENTS = D.events.map(([id, t, kind, node, peer, name, text, groups, causes]) =>
  ({ id, t, kind, node, peer, name, text, groups, causes, effects: [] }));
const BY_ID = new Map(EVENTS.map((e) => [e.id, e]));
for (const e of EVENTS) {
  for (const c of e.causes) BY_ID.get(c).effects.push(e.id);
  if (e.kind === 'deliver' && !e.text && e.causes.length) e.text = BY_ID.get(e.causes[0]).text;
}
const MARKED = new Set(D.marked);
const NUMBER = new Map(D.chain.map((link, i) => [link.id, i + 1]));
const FINDING = D.finding;
const LATE_NS = 100e6;

// What a filter switches: its name, whether it is on at first, and what it is.
const MESSAGES = {
  log: /^(Append|Fetch)/, votes: /^(PreVote|Vote|TimeoutNow)/, reads: /^ReadIndex/,
  forwards: /^(Forward|Status)/,
};
const KINDS = [
  ['log', true, 'Append and its answers'], ['votes', true, 'elections'], ['reads', true, 'read indexes'],
  ['forwards', true, 'requests between nodes'], ['heartbeats', false, 'heartbeats and the like'],
  ['steps', true, 'steps of the drivers'], ['disk', true, 'writes and syncs of the oplog'],
  ['applied', true, 'entries applied'], ['calls', true, 'clients: calls and answers'],
  ['timers', false, 'deadlines'], ['datagrams', true, 'lost datagrams of real QUIC'], ['other groups', false, 'events of other groups than the one selected'],
  ['dim', true, 'dim what is not in the chain'],
];
function kindOf(e) {
  switch (e.kind) {
    case 'send': case 'deliver': case 'drop':
      for (const kind in MESSAGES) if (MESSAGES[kind].test(e.name)) return kind;
      return 'heartbeats';
    case 'step': return e.groups.length ? 'steps' : 'heartbeats';
    case 'write': case 'sync': case 'sync-failed': case 'name': return 'disk';
    case 'applied': return 'applied';
    case 'call': case 'return': return 'calls';
    case 'timer': return 'timers';
    case 'dgram-drop': return 'datagrams';
    default: return 'always';
  }
}
for (const e of EVENTS) e.class = kindOf(e);

// Messages as arrows, from their arrival, their loss, or (under way at the end) their sending.
const ARROWS = [];
for (const e of EVENTS) {
  if (e.kind === 'deliver' || e.kind === 'drop') {
    const sent = BY_ID.get(e.causes[0]);
    if (!sent) continue;
    const lost = e.kind === 'drop';
    ARROWS.push({
      e, sent, from: sent.node, to: sent.peer, t0: sent.t, t1: e.t, lost, atOnce: lost && e.node === sent.node,
      late: !lost && e.t - sent.t >= LATE_NS, copy: e.text.endsWith('(repeated)'),
      marked: MARKED.has(e.id) && MARKED.has(sent.id),
    });
  } else if (e.kind === 'send' && !e.effects.length) {
    ARROWS.push({ e, sent: e, from: e.node, to: e.peer, t0: e.t, t1: D.end, open: true, marked: false });
  }
}

// How replicas stood: points by node and group.
const SERIES = new Map();
for (const s of D.series) {
  const points = [];
  for (let i = 0; i < s.points.length; i += 7) {
    const [t, role, term, appended, durable, committed, applied] = s.points.slice(i, i + 7);
    points.push({ t, role, term, appended, durable, committed, applied });
  }
  SERIES.set(`${s.node}/${s.group}`, points);
}
const pointsOf = (node) => SERIES.get(`${node}/${state.group}`) || [];
function upper(list, t, at) { // how many are at or before t
  let low = 0, high = list.length;
  while (low < high) { const mid = (low + high) >> 1; if (at(list[mid]) <= t) low = mid + 1; else high = mid; }
  return low;
}
const pointAt = (node, t) => { const p = pointsOf(node); return p[upper(p, t, (x) => x.t) - 1]; };
const databases = D.groups.filter((g) => g.id !== 0);
const groupName = (id) => { const g = D.groups.find((x) => x.id === id); return g ? `g${id} ${g.name}` : `g${id}`; };

// --- the state of the view ---

const state = {
  from: 0, to: 1, group: 0, kinds: new Map(KINDS.map(([kind, on]) => [kind, on])), nodes: new Set(D.nodes),
  query: '', selected: null, hover: null, cursor: null,
};
state.group = FINDING && FINDING.group !== null ? FINDING.group : databases.length ? databases[0].id : 0;
const RED = '#c3202f';
const COLORS = {
  log: '#2f6db5', votes: '#8a3fb0', reads: '#22806b', forwards: '#b8691a', heartbeats: '#9aa5b3',
};
const MARKS = [['durable', '#1857b6'], ['committed', '#1c8a4a'], ['applied', '#d07412']];

function visible(e) {
  if (MARKED.has(e.id)) return true;
  if (e.class !== 'always' && !state.kinds.get(e.class)) return false;
  return !e.groups.length || state.kinds.get('other groups') || e.groups.includes(state.group);
}
function matches(e) {
  const q = state.query;
  return e.kind.includes(q) || e.name.toLowerCase().includes(q) || e.text.toLowerCase().includes(q) || `n${e.node}` === q;
}
let found = [];
function search() {
  found = state.query ? EVENTS.filter((e) => e.kind !== 'send' && matches(e)) : [];
  $('matches').textContent = state.query ? `${found.length} found` : '';
  foundIds = new Set(found.map((e) => e.id));
}
let foundIds = new Set();

// --- time ---

const seconds = (ns, digits) => (ns / 1e9).toFixed(digits === undefined ? 6 : digits);
function relative(t) {
  const d = t - D.end, s = Math.abs(d) / 1e9;
  const digits = s < 0.1 ? 6 : s < 10 ? 4 : 2;
  return (d < 0 ? '−' : d > 0 ? '+' : '') + s.toFixed(digits) + ' s';
}
function look(from, to) {
  const least = 20e3, most = Math.max(D.last, D.end) * 1.04 + 1e6;
  let span = Math.min(Math.max(to - from, least), most);
  const middle = (from + to) / 2;
  from = Math.min(Math.max(middle - span / 2, -most * 0.02), most - span);
  state.from = from; state.to = from + span;
  draw();
}
const zoom = (by, at) => look(at - (at - state.from) * by, at + (state.to - at) * by);
const middle = () => (state.from + state.to) / 2;
const pan = (by) => look(state.from + (state.to - state.from) * by, state.to + (state.to - state.from) * by);
function lookAtEnd() {
  const span = 1.5e9;
  look(D.end - span, D.end + span * 0.06);
}
function lookAtChain() {
  if (!D.chain.length) return lookAtEnd();
  const from = D.chain[0].at, span = Math.max(D.end - from, 1e6);
  look(from - span * 0.03, D.end + span * 0.05);
}
const lookAtAll = () => look(0, Math.max(D.last, D.end) * 1.02);
function bring(t) { // into view, close enough to tell its neighbours apart
  const span = Math.min(state.to - state.from, 60e6);
  const inside = t > state.from + span * 0.1 && t < state.to - span * 0.1;
  if (!inside || state.to - state.from > 60e6) look(t - span / 2, t + span / 2);
  else draw();
}

// --- the diagram ---

const canvas = $('diagram');
let ctx = canvas.getContext('2d');
const GUTTER = 124, AXIS = 24, MINI = 58;
let W = 0, H = 0, lanes = new Map(), hits = [], badges = [];
const X = (t) => GUTTER + (t - state.from) / (state.to - state.from) * (W - GUTTER - 10);
const T = (x) => state.from + (x - GUTTER) / (W - GUTTER - 10) * (state.to - state.from);

function layout() {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  W = box.width; H = box.height;
  canvas.width = W * ratio; canvas.height = H * ratio;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
}
let pending = false;
function draw() {
  if (!pending) { pending = true; requestAnimationFrame(() => { pending = false; paint(); }); }
}
function font(size, bold) { ctx.font = `${bold ? '600 ' : ''}${size}px system-ui, "Liberation Sans", sans-serif`; }
function clip(text, width) { // as much of a text as fits
  if (ctx.measureText(text).width <= width) return text;
  let n = Math.min(text.length, Math.floor(width / 4));
  while (n > 1 && ctx.measureText(text.slice(0, n) + '…').width > width) n--;
  return n > 1 ? text.slice(0, n) + '…' : '';
}

function paint() {
  ctx.globalAlpha = 1;
  ctx.clearRect(0, 0, W, H);
  hits = []; badges = []; labels = [];
  const faults = packFaults();
  const top = AXIS + faults.rows * 16 + 4;
  const shown = D.nodes.filter((n) => state.nodes.has(n));
  const height = (H - top - MINI) / Math.max(shown.length, 1);
  lanes = new Map(shown.map((node, i) => {
    const y = top + i * height, band = 16, marks = Math.min(Math.max(height * 0.36, 22), 90);
    return [node, { y, height, rail: y + band + (height - band - marks) * 0.52, marks, band }];
  }));
  ctx.save();
  ctx.beginPath(); ctx.rect(GUTTER, 0, W - GUTTER, H - MINI); ctx.clip();
  paintOutsideWindow(top);
  paintFaults(faults);
  const scale = markScale(shown);
  for (const node of shown) paintLane(node, scale);
  paintArrows(false); paintEvents(false);
  paintArrows(true); paintEvents(true);
  paintBadges();
  paintEnd(top);
  ctx.restore();
  paintGutter(shown);
  paintAxis();
  paintMini();
  remember();
}

function paintOutsideWindow(top) {
  const x = X(D.window);
  if (x <= GUTTER) return;
  ctx.fillStyle = '#f7f8fa';
  ctx.fillRect(GUTTER, top, Math.min(x, W) - GUTTER, H);
  font(11); ctx.fillStyle = '#8893a1'; ctx.textAlign = 'right';
  const text = 'before this only faults, processes, leaders and the chain are kept (replay --window)';
  if (x < W + 200 && x - GUTTER > 460) ctx.fillText(text, Math.min(x, W) - 6, H - MINI - 5);
  ctx.textAlign = 'left';
}

function packFaults() {
  const spans = D.spans.filter((s) => s.kind === 'fault' && s.from < state.to && (s.to === null ? D.last : s.to) >= state.from);
  const ends = [], placed = [];
  font(11);
  for (const s of spans) {
    const x0 = Math.max(X(s.from), GUTTER), x1 = X(s.to === null ? D.last : s.to);
    const width = Math.max(x1 - x0, Math.min(ctx.measureText(s.text).width + 8, 220), 6);
    let row = ends.findIndex((end) => end <= x0);
    if (row < 0) { if (ends.length === 5) continue; row = ends.push(0) - 1; }
    ends[row] = x0 + width + 3;
    placed.push({ s, x0, x1: Math.max(x1, x0 + 3), row, width });
  }
  return { rows: Math.max(ends.length, 1), placed };
}
function paintFaults({ placed }) {
  font(11); ctx.textBaseline = 'middle';
  for (const { s, x0, x1, row, width } of placed) {
    const y = AXIS + row * 16 + 2;
    ctx.fillStyle = '#fbe3c4'; ctx.fillRect(x0, y, x1 - x0, 14);
    ctx.fillStyle = '#c97a1d'; ctx.fillRect(x0, y, 2, 14);
    ctx.fillStyle = '#6b3d06';
    ctx.fillText(clip(s.text, width - 6), x0 + 5, y + 7.5);
    hits.push({ x0, y0: y, x1: Math.max(x1, x0 + width), y1: y + 14, box: true, tip: `${s.text}\n${seconds(s.from, 3)} s to ${s.to === null ? 'the end' : seconds(s.to, 3) + ' s'}` });
  }
}

function markScale(nodes) {
  let low = Infinity, high = 0;
  for (const node of nodes) {
    const points = pointsOf(node), first = upper(points, state.from, (p) => p.t) - 1;
    for (let i = Math.max(first, 0); i < points.length && points[i].t <= state.to; i++) {
      const p = points[i];
      if (!p.role) continue;
      low = Math.min(low, p.durable, p.applied); high = Math.max(high, p.durable, p.committed);
    }
  }
  return low < Infinity ? { low, high: Math.max(high, low + 1) } : null;
}

function paintLane(node, scale) {
  const lane = lanes.get(node), { y, height, rail, marks, band } = lane;
  ctx.fillStyle = '#eef1f4'; ctx.fillRect(GUTTER, y + height - 1, W, 1);
  paintSpans(node, lane);
  // Terms and leaders.
  const points = pointsOf(node);
  let i = Math.max(upper(points, state.from, (p) => p.t) - 1, 0);
  font(11, true); ctx.textBaseline = 'middle';
  while (i < points.length && points[i].t < state.to) {
    let j = i + 1;
    while (j < points.length && points[j].role === points[i].role && points[j].term === points[i].term) j++;
    const p = points[i], x0 = Math.max(X(p.t), GUTTER), x1 = Math.min(j < points.length ? X(points[j].t) : X(D.end), W);
    if (p.role && x1 > x0) {
      const hue = (p.term * 67 + 200) % 360, leads = p.role === 4, asks = p.role === 2 || p.role === 3;
      ctx.fillStyle = leads ? `hsl(${hue} 55% 38%)` : asks ? `hsl(${hue} 75% 70%)` : `hsl(${hue} 55% 90%)`;
      ctx.fillRect(x0, y + 2, Math.max(x1 - x0, 1), band - 2);
      ctx.fillStyle = leads ? '#fff' : `hsl(${hue} 60% 24%)`;
      const what = ['', `follows`, 'asks', 'campaigns', 'LEADS'][p.role];
      const text = `t${p.term} ${what}`;
      if (x1 - x0 > 24) ctx.fillText(clip(x1 - x0 > 90 ? text : `t${p.term}`, x1 - x0 - 6), x0 + 4, y + 2 + band / 2 - 1);
    }
    i = j;
  }
  // The rail.
  ctx.strokeStyle = '#c3cad3'; ctx.lineWidth = 1;
  ctx.beginPath(); ctx.moveTo(GUTTER, rail); ctx.lineTo(W, rail); ctx.stroke();
  if (scale) paintMarks(points, scale, y + height - marks + 2, marks - 20);
}

function paintMarks(points, { low, high }, top, height) {
  const Y = (lsn) => top + height - (Math.min(Math.max(lsn, low), high) - low) / (high - low) * height;
  const first = Math.max(upper(points, state.from, (p) => p.t) - 1, 0);
  MARKS.forEach(([mark, color], n) => {
    ctx.strokeStyle = color; ctx.lineWidth = 1.4; ctx.beginPath();
    let open = false;
    for (let i = first; i < points.length && points[i].t <= state.to; i++) {
      const p = points[i], x = Math.max(X(p.t), GUTTER), x1 = i + 1 < points.length ? X(points[i + 1].t) : X(D.end);
      if (!p.role) { open = false; continue; }
      const y = Y(p[mark]) + (n - 1) * 1.5;
      if (open) ctx.lineTo(x, y); else ctx.moveTo(x, y);
      ctx.lineTo(Math.min(x1, W), y); open = true;
    }
    ctx.stroke();
  });
}

function paintSpans(node, { y, height, rail }) {
  let cuts = 0;
  for (const s of D.spans) {
    if (s.kind === 'fault' || s.nodes[0] !== node || s.from > state.to) continue;
    const x0 = Math.max(X(s.from), GUTTER), x1 = Math.min(X(s.to === null ? D.end : s.to), W);
    if (x1 < GUTTER) continue;
    if (s.kind === 'cut') {
      const row = y + height - 5 - (cuts++ % 5) * 3;
      ctx.strokeStyle = '#d8515c'; ctx.lineWidth = 2;
      ctx.beginPath(); ctx.moveTo(x0, row); ctx.lineTo(x1, row); ctx.stroke();
      hits.push({ x0, y0: row - 2, x1, y1: row + 2, box: true, tip: `messages from n${node} to n${s.nodes[1]} are lost\n${seconds(s.from, 3)} s to ${s.to === null ? 'the end' : seconds(s.to, 3) + ' s'}` });
      continue;
    }
    const down = s.kind === 'down';
    hatch(x0, y + 18, Math.max(x1 - x0, 2), height - 20, down ? '#6b7480' : '#c08a00', down ? '#e9ebeecc' : '#fff4d0aa');
    if (x1 - x0 > 34) {
      font(12, true); ctx.fillStyle = down ? '#4a525c' : '#7a5800'; ctx.textBaseline = 'middle';
      ctx.fillText(s.kind, x0 + 5, y + 28);
    }
  }
}
function hatch(x, y, w, h, line, fill) {
  ctx.save(); ctx.beginPath(); ctx.rect(x, y, w, h); ctx.clip();
  ctx.fillStyle = fill; ctx.fillRect(x, y, w, h);
  ctx.strokeStyle = line; ctx.globalAlpha = 0.28; ctx.lineWidth = 1; ctx.beginPath();
  for (let at = Math.floor((x - h) / 9) * 9; at < x + w; at += 9) { ctx.moveTo(at, y + h); ctx.lineTo(at + h, y); }
  ctx.stroke(); ctx.restore();
}

const dimmed = (marked) => (!marked && D.chain.length && state.kinds.get('dim') ? 0.3 : 0.85);

function paintArrows(marked) {
  let drawn = 0;
  for (const a of ARROWS) if (a.marked === marked && a.t1 >= state.from && a.t0 <= state.to && visible(a.e)) drawn++;
  const plain = drawn > 2500;
  for (const a of ARROWS) {
    if (a.marked !== marked || a.t1 < state.from || a.t0 > state.to || !visible(a.e)) continue;
    const from = lanes.get(a.from), to = lanes.get(a.to);
    if (!from || !to) continue;
    let x0 = X(a.t0), y0 = from.rail, x1 = X(a.t1), y1 = to.rail;
    const chosen = state.selected === a.e.id || state.selected === a.sent.id, hit = foundIds.has(a.e.id);
    if (a.atOnce) { x1 = x0 + 12; y1 = y0 + Math.sign(y1 - y0) * Math.min(26, Math.abs(y1 - y0) * 0.4); }
    if (a.open) { const part = 0.25; x1 = x0 + Math.max((x1 - x0) * part, 6); y1 = y0 + (y1 - y0) * part; }
    if (a.lost && !a.atOnce) { x1 = x0 + (x1 - x0) * 0.93; y1 = y0 + (y1 - y0) * 0.93; }
    ctx.globalAlpha = marked || chosen || hit ? 1 : dimmed(false);
    ctx.strokeStyle = chosen ? '#000' : a.lost ? '#d8515c' : marked ? RED : COLORS[a.e.class] || '#667';
    ctx.lineWidth = marked || chosen ? 2 : 1;
    ctx.setLineDash(a.lost ? [4, 3] : a.copy ? [8, 3] : a.late ? [1, 3] : a.open ? [2, 3] : []);
    if (a.late && !marked) ctx.lineWidth = 2;
    ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke();
    ctx.setLineDash([]);
    if (a.lost) cross(x1, y1, 4, ctx.strokeStyle);
    else if (!a.open && (!plain || marked)) head(x0, y0, x1, y1, ctx.strokeStyle, marked ? 8 : 6);
    if (hit) ring(x1, y1, 6, '#e0b000');
    hits.push({ x0, y0, x1, y1, e: a.e });
    const long = Math.hypot(x1 - x0, y1 - y0);
    const room = (W - GUTTER) / Math.max(drawn, 1);
    if (!plain && x1 - x0 > 14 && (marked || room > 60) && long > 60) label(a, x0, y0, x1, y1, marked);
    if (NUMBER.has(a.e.id)) badges.push({ x: x1, y: y1, dy: y1 > y0 ? -11 : 11, n: NUMBER.get(a.e.id), id: a.e.id });
  }
  ctx.globalAlpha = 1;
}
let labels = [];
function label(a, x0, y0, x1, y1, marked) {
  font(11, marked);
  const text = a.e.name, w = ctx.measureText(text).width;
  const apart = (o, x, y) => Math.abs(o.x - x) > (w + o.w) / 2 + 4 || Math.abs(o.y - y) > 14;
  let x, y, free = false;
  for (const at of [0.42, 0.58, 0.3, 0.7]) {
    x = x0 + (x1 - x0) * at; y = y0 + (y1 - y0) * at;
    free = labels.every((o) => apart(o, x, y));
    if (free) break;
  }
  if (!free) return;
  labels.push({ x, y, w });
  ctx.globalAlpha = 1; ctx.fillStyle = '#ffffffd8'; ctx.fillRect(x - w / 2 - 2, y - 7, w + 4, 14);
  ctx.fillStyle = marked ? RED : COLORS[a.e.class] || '#445'; ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  ctx.fillText(text, x, y); ctx.textAlign = 'left';
}
function head(x0, y0, x1, y1, color, size) {
  const angle = Math.atan2(y1 - y0, x1 - x0);
  ctx.fillStyle = color; ctx.beginPath(); ctx.moveTo(x1, y1);
  for (const turn of [0.4, -0.4]) ctx.lineTo(x1 - size * Math.cos(angle + turn), y1 - size * Math.sin(angle + turn));
  ctx.fill();
}
function cross(x, y, r, color) {
  ctx.strokeStyle = color; ctx.lineWidth = 2; ctx.beginPath();
  ctx.moveTo(x - r, y - r); ctx.lineTo(x + r, y + r); ctx.moveTo(x + r, y - r); ctx.lineTo(x - r, y + r); ctx.stroke();
}
function ring(x, y, r, color) {
  ctx.strokeStyle = color; ctx.lineWidth = 2.5; ctx.beginPath(); ctx.arc(x, y, r, 0, 7); ctx.stroke();
}

// Where an event stands in its lane, and its shape.
const SHAPES = {
  step: ['dot', 0], call: ['down', -13], return: ['up', -13], write: ['box', 12], sync: ['disk', 12], name: ['box', 12],
  applied: ['diamond', 0], process: ['big', 0], pause: ['pause', 0], resume: ['play', 0], fault: ['cross', 0],
  leader: ['flag', 0], 'dgram-drop': ['lost', -4], timer: ['tick', 0], drop: [null, 0], send: [null, 0], deliver: [null, 0],
};
function shape(kind, x, y, color) {
  ctx.fillStyle = color; ctx.strokeStyle = color; ctx.lineWidth = 1.5; ctx.beginPath();
  switch (kind) {
    case 'dot': ctx.arc(x, y, 2.6, 0, 7); ctx.fill(); break;
    case 'big': ctx.arc(x, y, 5, 0, 7); ctx.fill(); break;
    case 'down': ctx.moveTo(x - 5, y - 4); ctx.lineTo(x + 5, y - 4); ctx.lineTo(x, y + 4); ctx.fill(); break;
    case 'up': ctx.moveTo(x - 5, y + 4); ctx.lineTo(x + 5, y + 4); ctx.lineTo(x, y - 4); ctx.fill(); break;
    case 'box': ctx.strokeRect(x - 2.5, y - 2.5, 5, 5); break;
    case 'disk': ctx.fillRect(x - 3, y - 3, 6, 6); break;
    case 'diamond': ctx.moveTo(x, y - 4.5); ctx.lineTo(x + 4.5, y); ctx.lineTo(x, y + 4.5); ctx.lineTo(x - 4.5, y); ctx.fill(); break;
    case 'pause': ctx.fillRect(x - 4, y - 5, 3, 10); ctx.fillRect(x + 1, y - 5, 3, 10); break;
    case 'play': ctx.moveTo(x - 4, y - 5); ctx.lineTo(x + 5, y); ctx.lineTo(x - 4, y + 5); ctx.fill(); break;
    case 'cross': cross(x, y, 6, color); break;
    case 'lost': cross(x, y, 2.5, color); break;
    case 'flag': ctx.fillRect(x - 1, y - 11, 2, 11); ctx.fillRect(x - 1, y - 11, 8, 5); break;
    case 'tick': ctx.fillRect(x - 0.5, y - 4, 1, 8); break;
  }
}
const EVENT_COLORS = {
  step: '#4c5866', call: '#b8691a', return: '#22806b', write: '#6a7684', sync: '#6a7684', name: '#9aa5b3', applied: '#d07412',
  process: '#1c8a4a', pause: '#c08a00', resume: '#c08a00', fault: '#111', leader: '#5a2f8f', 'dgram-drop': '#d8515c', timer: '#9aa5b3',
};

function paintEvents(marked) {
  const first = upper(EVENTS, state.from - 1, (e) => e.t);
  let last = null;
  for (let i = first; i < EVENTS.length && EVENTS[i].t <= state.to; i++) {
    const e = EVENTS[i], lane = lanes.get(e.node);
    if (!lane || MARKED.has(e.id) !== marked || !visible(e)) continue;
    const [kind, dy] = SHAPES[e.kind] || ['dot', 0];
    if (!kind) continue;
    const x = X(e.t), y = lane.rail + dy, chosen = state.selected === e.id, hit = foundIds.has(e.id);
    if (e.kind === 'return' || e.kind === 'sync') tie(e, x, y, marked);
    // What would fall on the same pixel is drawn once.
    const spot = `${e.node} ${e.kind} ${Math.round(x)}`;
    if (spot === last && !marked && !chosen && !hit) continue;
    last = spot;
    const weighty = e.class === 'always';
    ctx.globalAlpha = marked || chosen || hit || weighty ? 1 : dimmed(false);
    shape(kind, x, y, marked && !weighty ? RED : EVENT_COLORS[e.kind]);
    if (chosen) ring(x, y, 8, '#000');
    if (hit) ring(x, y, 7, '#e0b000');
    hits.push({ x0: x, y0: y, x1: x, y1: y, e });
    if (NUMBER.has(e.id)) badges.push({ x, y, dy: dy > 0 ? 11 : -12, n: NUMBER.get(e.id), id: e.id });
  }
  ctx.globalAlpha = 1;
}
function tie(e, x, y, marked) { // a call to its answer, a write to its sync
  const begun = e.causes.map((c) => BY_ID.get(c)).find((c) => c.kind === (e.kind === 'return' ? 'call' : 'write'));
  if (!begun) return;
  ctx.globalAlpha = marked ? 0.9 : dimmed(false) * 0.7;
  ctx.strokeStyle = marked ? RED : EVENT_COLORS[e.kind]; ctx.lineWidth = marked ? 2 : 1;
  ctx.beginPath(); ctx.moveTo(X(begun.t), y); ctx.lineTo(x, y); ctx.stroke();
}

function paintBadges() {
  const taken = [];
  font(10, true); ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  badges.sort((a, b) => b.n - a.n);
  for (const b of badges) {
    const x = b.x, w = b.n > 99 ? 11 : 8.5;
    let y = b.y + b.dy;
    const free = () => !taken.some((o) => Math.abs(o.x - x) < w + o.w - 1 && Math.abs(o.y - y) < 14);
    for (const off of [0, -15, 15, -30]) { y = b.y + b.dy + off; if (free()) break; }
    if (!free()) continue;
    taken.push({ x, y, w });
    const now = state.selected === b.id;
    ctx.fillStyle = now ? '#000' : RED;
    ctx.beginPath(); ctx.roundRect(x - w, y - 7, w * 2, 14, 7); ctx.fill();
    ctx.fillStyle = '#fff'; ctx.fillText(String(b.n), x, y + 0.5);
    hits.push({ x0: x, y0: y, x1: x, y1: y, e: BY_ID.get(b.id) });
  }
  ctx.textAlign = 'left';
}

function paintEnd(top) {
  const x = X(D.end), color = FINDING ? RED : '#2e7d4f';
  ctx.strokeStyle = color; ctx.lineWidth = 2; ctx.setLineDash([6, 3]);
  ctx.beginPath(); ctx.moveTo(x, AXIS); ctx.lineTo(x, H - MINI); ctx.stroke(); ctx.setLineDash([]);
  const at = FINDING && BY_ID.get(FINDING.event), lane = at && lanes.get(at.node);
  if (lane) ring(X(at.t), lane.rail + ((SHAPES[at.kind] || [])[1] || 0), 10, RED);
}

function paintGutter(nodes) {
  ctx.fillStyle = '#fff'; ctx.fillRect(0, 0, GUTTER, H - MINI);
  const t = state.cursor === null ? Math.min(state.to, D.end) : Math.min(T(state.cursor), D.end);
  for (const node of nodes) {
    const { y, height } = lanes.get(node), p = pointAt(node, t);
    ctx.fillStyle = '#eef1f4'; ctx.fillRect(0, y + height - 1, GUTTER, 1);
    ctx.textBaseline = 'alphabetic'; ctx.fillStyle = '#1c2430'; font(15, true);
    ctx.fillText(`n${node}`, 10, y + 17);
    font(11); ctx.fillStyle = '#5b6675';
    if (!p) continue;
    const role = ['down', 'follows', 'asks', 'campaigns', 'leads'][p.role];
    ctx.fillText(p.role ? `${role} t${p.term}` : role, 38, y + 16);
    if (!p.role || height < 78) continue;
    MARKS.forEach(([mark, color], i) => {
      ctx.fillStyle = color; ctx.fillText(mark, 10, y + height - 39 + i * 14);
      ctx.textAlign = 'right'; ctx.fillText(`l${p[mark]}`, GUTTER - 10, y + height - 39 + i * 14); ctx.textAlign = 'left';
    });
  }
  font(11); ctx.fillStyle = '#5b6675'; ctx.textBaseline = 'middle';
  ctx.fillText(groupName(state.group), 10, AXIS / 2);
  ctx.fillText('faults', 10, AXIS + 10);
  ctx.strokeStyle = '#d5dae1'; ctx.lineWidth = 1;
  ctx.beginPath(); ctx.moveTo(GUTTER - 0.5, 0); ctx.lineTo(GUTTER - 0.5, H - MINI); ctx.stroke();
}

function paintAxis() {
  const span = state.to - state.from, rough = span / ((W - GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const digits = Math.max(0, Math.min(9, 9 - Math.floor(Math.log10(step))));
  ctx.fillStyle = '#fff'; ctx.fillRect(GUTTER, 0, W, AXIS - 1);
  font(11); ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  const end = X(D.end), word = FINDING ? 'violation' : 'end', half = 32;
  for (let t = Math.ceil(state.from / step) * step; t <= state.to; t += step) {
    const x = X(t);
    if (x < GUTTER + 5) continue;
    ctx.fillStyle = '#c3cad3'; ctx.fillRect(x, AXIS - 6, 1, 5);
    ctx.fillStyle = '#5b6675';
    if (Math.abs(x - end) > half + 26 && x < W - 24) ctx.fillText(`${seconds(t, digits)} s`, x, AXIS / 2 - 2);
  }
  if (end > GUTTER && end < W + half) {
    const x = Math.min(end, W - half - 2);
    font(11, true); ctx.fillStyle = FINDING ? RED : '#2e7d4f';
    ctx.fillRect(x - half, 2, half * 2, AXIS - 7); ctx.fillStyle = '#fff'; ctx.fillText(word, x, AXIS / 2 - 1);
  }
  if (state.cursor !== null && state.cursor > GUTTER) {
    const t = T(state.cursor), text = `${seconds(t)} s  (${relative(t)})`;
    ctx.fillStyle = '#0000001c'; ctx.fillRect(state.cursor, AXIS, 1, H - MINI - AXIS);
    font(11); const w = ctx.measureText(text).width + 10, x = Math.min(Math.max(state.cursor, GUTTER + w / 2), W - w / 2 - 2);
    ctx.fillStyle = '#1c2430'; ctx.fillRect(x - w / 2, 2, w, AXIS - 7); ctx.fillStyle = '#fff'; ctx.fillText(text, x, AXIS / 2 - 1);
  }
  ctx.textAlign = 'left';
  ctx.fillStyle = '#d5dae1'; ctx.fillRect(0, AXIS - 1, W, 1);
}

// The whole run in small: who leads the group, who is down, where the view is.
const miniEnd = () => Math.max(D.last, D.end, 1);
const miniX = (t) => GUTTER + t / miniEnd() * (W - GUTTER - 10);
function paintMini() {
  const top = H - MINI, rows = D.nodes.length, row = (MINI - 20) / rows;
  ctx.fillStyle = '#f5f7f9'; ctx.fillRect(0, top, W, MINI); ctx.fillStyle = '#d5dae1'; ctx.fillRect(0, top, W, 1);
  font(11); ctx.fillStyle = '#5b6675'; ctx.textBaseline = 'middle';
  ctx.fillText('whole run', 10, top + 12); font(10); ctx.fillText('dark: leads', 10, top + 28); ctx.fillText('black: down', 10, top + 42);
  D.nodes.forEach((node, i) => {
    const points = pointsOf(node), y = top + 5 + i * row;
    for (let k = 0; k < points.length; k++) {
      const p = points[k], x0 = miniX(p.t), x1 = miniX(k + 1 < points.length ? points[k + 1].t : D.end);
      if (x1 - x0 < 0.2 && p.role && p.role !== 4) continue;
      const hue = (p.term * 67 + 200) % 360;
      ctx.fillStyle = !p.role ? '#30363d' : p.role === 4 ? `hsl(${hue} 55% 42%)` : '#e1e6ec';
      ctx.fillRect(x0, y, Math.max(x1 - x0, 0.6), row - 1);
    }
  });
  for (const s of D.spans) {
    if (s.kind !== 'fault') continue;
    ctx.fillStyle = '#e0a24e'; ctx.fillRect(miniX(s.from), H - 13, Math.max(miniX(s.to === null ? D.end : s.to) - miniX(s.from), 1), 3);
  }
  ctx.fillStyle = FINDING ? RED : '#2e7d4f'; ctx.fillRect(miniX(D.end) - 1, top + 2, 2, MINI - 12);
  for (const link of D.chain) { ctx.fillStyle = RED; ctx.fillRect(miniX(link.at), H - 9, 1.5, 7); }
  const x0 = miniX(Math.max(state.from, 0)), x1 = miniX(state.to);
  ctx.strokeStyle = '#1857b6'; ctx.lineWidth = 1.5; ctx.fillStyle = '#1857b61e';
  ctx.fillRect(x0, top + 1, Math.max(x1 - x0, 3), MINI - 2); ctx.strokeRect(x0, top + 1, Math.max(x1 - x0, 3), MINI - 2);
}
