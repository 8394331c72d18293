"""The looks of our pages: light and dark as the reader's system has it, narrow and wide."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1b19; --soft: #63625d; --rule: #e3e2dd;
  --s0: #2a78d6; --s1: #d9622b; --s2: #2f8f5b; --s3: #8a5cc4; --s4: #c03d68; --s5: #8a7a12;
  --s6: #1591a5; --s7: #6b6b66; --good: #1f8a4c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #161615; --card: #1f1f1d; --ink: #ecebe6; --soft: #a3a29b; --rule: #34342f;
    --s0: #5a9df0; --s1: #ef8650; --s2: #55b983; --s3: #b08be4; --s4: #e8749a; --s5: #c9b84a;
    --s6: #4fc3d5; --s7: #a8a8a2; --good: #4cc07e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); font-size: 16px; line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; overflow-wrap: anywhere; }
h3 { font-size: 0.95rem; margin: 0; font-weight: 600; }
section { margin-top: 48px; }
section > h3, .inside > h3 { margin: 28px 0 10px; }
section > h2 + h3, section > .note + h3 { margin-top: 0; }
:is(.wide, .charts, .broad, .note) + :is(.wide, .note), details { margin-top: 12px; }
.inside { padding-top: 4px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: 0.88rem; }
nav a { color: var(--s0); text-decoration: none; }
nav a:hover { text-decoration: underline; }
.subtitle, .note { color: var(--soft); margin: 6px 0 0; font-size: 0.88rem; font-weight: 400; }
section > h2 + .note { margin: -6px 0 14px; }

.tiles {
  display: grid; gap: 12px; margin: 24px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
}
.tiles div, .chart, .wide, details {
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
}
.tiles div { padding: 12px 14px; }
.tiles dt { color: var(--soft); font-size: 0.8rem; overflow-wrap: anywhere; }
.tiles dd { margin: 2px 0 0; font-size: 1.5rem; font-weight: 600; letter-spacing: -0.01em; }

.wide { overflow-x: auto; }
.inside .wide { border: 0; border-top: 1px solid var(--rule); border-radius: 0; }
table {
  border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums;
}
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; vertical-align: top; }
th.text, td.text { text-align: left; }
td.text {
  white-space: normal; overflow-wrap: break-word; min-width: 110px; max-width: 420px;
}
td small { display: block; color: var(--soft); font-size: 0.74rem; }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--rule); }
tr + tr td { border-top: 1px solid var(--rule); }

.charts {
  display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr));
}
.chart { margin: 0; padding: 4px 6px; min-width: 0; }
.chart svg { display: block; width: 100%; height: auto; }
.broad { margin-top: 14px; }
.broad .scroll { overflow-x: auto; }
.broad svg { width: auto; max-width: none; }
.chart .note { margin: 2px 12px 8px; }
.themed text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.themed .ink { fill: var(--ink); }
.themed .back { fill: none; }
.themed .grid { stroke: var(--rule); } .themed .axis { stroke: var(--soft); }
.themed .faint { fill: var(--rule); }
.line.s0 { stroke: var(--s0); } .dot.s0 { fill: var(--s0); }
.line.s1 { stroke: var(--s1); } .dot.s1 { fill: var(--s1); }
.line.s2 { stroke: var(--s2); } .dot.s2 { fill: var(--s2); }
.line.s3 { stroke: var(--s3); } .dot.s3 { fill: var(--s3); }
.line.s4 { stroke: var(--s4); } .dot.s4 { fill: var(--s4); }
.line.s5 { stroke: var(--s5); } .dot.s5 { fill: var(--s5); }
.line.s6 { stroke: var(--s6); } .dot.s6 { fill: var(--s6); }
.line.s7 { stroke: var(--s7); } .dot.s7 { fill: var(--s7); }
.white svg { border-radius: 8px; }

.query { padding: 16px 0; border-top: 1px solid var(--rule); }
.query h3 {
  display: flex; align-items: center; flex-wrap: wrap; gap: 4px 10px; overflow-wrap: anywhere;
}
.query h3 .note { margin: 0; }
.asked { width: 44px; height: 44px; object-fit: contain; background: #fff; border-radius: 6px; }
.answers {
  list-style: none; display: grid; gap: 12px; margin: 10px 0 0; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(112px, 1fr));
}
.frame {
  position: relative; background: #fff; border: 2px solid var(--rule); border-radius: 10px;
  aspect-ratio: 1; overflow: hidden; display: grid; place-items: center;
}
.frame img { width: 100%; height: 100%; min-height: 0; object-fit: contain; padding: 8px; }
.right .frame { border-color: var(--good); }
.mark {
  position: absolute; right: 6px; bottom: 6px; padding: 1px 7px; border-radius: 6px;
  background: #1f8a4c; color: #fff; font-size: 0.7rem;
}
.missing { color: #777; font-size: 0.75rem; }
.score {
  margin: 6px 0 0; font-size: 0.8rem; font-weight: 600; font-variant-numeric: tabular-nums;
}
.caption {
  margin: 0; font-size: 0.8rem; color: var(--soft); overflow-wrap: anywhere;
  display: -webkit-box; -webkit-line-clamp: 3; -webkit-box-orient: vertical; overflow: hidden;
}
.none { color: var(--soft); }
details { padding: 10px 16px; }
summary { cursor: pointer; font-size: 0.9rem; }
pre { overflow-x: auto; font-size: 0.78rem; }
@media (max-width: 480px) {
  main { padding: 20px 14px 48px; }
  .answers { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
  th, td { padding: 6px 8px; }
  table { font-size: 0.8rem; }
  td.text { min-width: 72px; }
}
"""
