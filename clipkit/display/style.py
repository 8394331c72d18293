"""The looks of our pages: light and dark as the reader's system has it, narrow and wide."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1b1b19; --soft: #63625d; --rule: #e3e2dd;
  --s0: #2a78d6; --s1: #d9622b; --s2: #2f8f5b; --s3: #8a5cc4; --good: #1f8a4c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #161615; --card: #1f1f1d; --ink: #ecebe6; --soft: #a3a29b; --rule: #34342f;
    --s0: #5a9df0; --s1: #ef8650; --s2: #55b983; --s3: #b08be4; --good: #4cc07e;
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
section { margin-top: 40px; }
.subtitle, .note { color: var(--soft); margin: 6px 0 0; font-size: 0.88rem; font-weight: 400; }
section > .note { margin: -6px 0 14px; }

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
table {
  border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums;
}
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--rule); }
tr + tr td { border-top: 1px solid var(--rule); }

.charts {
  display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr));
}
.chart { margin: 0; padding: 14px; }
.chart svg { display: block; width: 100%; height: auto; margin-top: 8px; }
.chart text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.s0 { stroke: var(--s0); } .dot.s0 { fill: var(--s0); } i.s0 { background: var(--s0); }
.line.s1 { stroke: var(--s1); } .dot.s1 { fill: var(--s1); } i.s1 { background: var(--s1); }
.line.s2 { stroke: var(--s2); } .dot.s2 { fill: var(--s2); } i.s2 { background: var(--s2); }
.line.s3 { stroke: var(--s3); } .dot.s3 { fill: var(--s3); } i.s3 { background: var(--s3); }
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 14px; margin-top: 2px;
  font-size: 0.8rem; color: var(--soft);
}
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; }
.key b { color: var(--ink); font-weight: 600; margin-left: 6px; }

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
details { padding: 10px 14px; }
summary { cursor: pointer; font-size: 0.9rem; }
pre { overflow-x: auto; font-size: 0.78rem; }
@media (max-width: 480px) {
  main { padding: 20px 14px 48px; }
  .answers { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); }
}
"""
