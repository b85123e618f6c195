"""The looks of the page. Kinds differ by more than colour: what is learned is bold and underlined, boxes
doubly and entities in dots; templates are slanted, pictures have a frame."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1c2128;--soft:#57606a;--line:#d6dbe1;
--special:#eceff2;--special-ink:#57606a;--image:#dcebff;--image-ink:#0b4189;--instruction:#f4f1e9;
--instruction-ink:#1c2128;--response:#d5f3de;--response-ink:#0a4a22;--box:#f3e1fb;--box-ink:#5c1a7a;
--entity:#ffecc9;--entity-ink:#653c00;--kept:#2f8f55;--cut:#a87300;--left:#c8384a}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#161b22;--ink:#e4e8ed;--soft:#9ba6b2;
--line:#2d343d;
--special:#222932;--special-ink:#a5b0bb;--image:#14325a;--image-ink:#b3d4ff;--instruction:#26272b;
--instruction-ink:#e4e8ed;--response:#113b22;--response-ink:#a9f0c0;--box:#3d1c50;--box-ink:#ecc8ff;
--entity:#473108;--entity-ink:#ffdc9c;--kept:#4cb877;--cut:#dba93a;--left:#ec6a78}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:1.5rem 1.25rem 6rem}
h1{font-size:1.6rem;margin:.5rem 0 .75rem;overflow-wrap:anywhere}h2{font-size:1.15rem;
margin:2.25rem 0 .5rem}
p{margin:.4rem 0;max-width:60rem}.big{font-size:1.1rem}.note{border-left:4px solid var(--cut);
padding-left:.75rem}
small,figcaption,.how,.fates{color:var(--soft);font-size:.85rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.side{display:flex;flex-wrap:wrap;gap:1rem 3rem;margin-top:1rem;align-items:flex-start}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem .25rem 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child,table.text :is(th,td){text-align:left}
table.text td{white-space:normal;vertical-align:top;overflow-wrap:anywhere}
.histogram{display:block;width:100%;min-width:40rem;max-width:60rem;margin-top:.75rem}
.histogram text{font-size:11px;fill:var(--soft)}.count{text-anchor:middle}.tick{text-anchor:middle}
.back{fill:transparent}.back:hover{fill:var(--line)}
rect.kept{fill:var(--kept)}rect.cut{fill:var(--cut)}rect.left_out{fill:var(--left)}
path.limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}.histogram text.limit{fill:var(--ink);
font-weight:600}
.fates b{display:inline-block;width:.8rem;height:.8rem;margin:0 .35rem 0 .9rem;border-radius:2px}
.fates b:first-child{margin-left:0}
.fates .kept{background:var(--kept)}.fates .cut{background:var(--cut)}
.fates .left_out{background:var(--left)}
.legend{position:sticky;top:0;z-index:2;background:var(--page);border-bottom:1px solid var(--line);
padding:.5rem 0;line-height:2}.legend small{margin-right:.6rem}.how b.on{color:var(--ink)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;margin:1rem 0;
padding:.9rem 1.1rem}
h3{display:flex;flex-wrap:wrap;gap:.2rem .75rem;align-items:baseline;margin:0 0 .6rem;font-size:1rem}
h3 small{font-weight:400}h3 code{font-weight:400;font-size:.8rem;color:var(--soft);margin-left:auto;
overflow-wrap:anywhere}
.sample{display:flex;flex-wrap:wrap;gap:1.1rem;align-items:flex-start}
.pictures{display:flex;flex-wrap:wrap;gap:.75rem;max-width:100%;flex:0 1 auto}
figure{margin:0;max-width:100%}figure div{position:relative;line-height:0}
figure img{width:100%;height:auto;border-radius:4px}img.grown{image-rendering:pixelated}
figure svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
figure rect{fill:none;vector-effect:non-scaling-stroke;stroke:#ff2bd6;stroke-width:2}
figure rect.halo{stroke:#000;stroke-width:4}figure rect.question{stroke:#fff;stroke-dasharray:5 4}
figure text{fill:#fff;stroke:#000;stroke-width:.25em;paint-order:stroke;font-weight:700;
font-family:system-ui,sans-serif}
figcaption ol{margin:.2rem 0 0;padding-left:1.4rem}
pre{flex:1 1 22rem;min-width:0;max-height:36rem;overflow:auto;margin:0;font-size:.875rem;line-height:1.9;
white-space:pre-wrap;overflow-wrap:anywhere}
.t{border-radius:3px;padding:.12em 0;margin-right:1px;-webkit-box-decoration-break:clone;
box-decoration-break:clone}
.t:hover{outline:2px solid var(--ink)}
.legend .t,td .t{padding:.1em .4em;font-family:ui-monospace,monospace;font-size:.85rem}
.side .wide+.wide tr:last-child td{font-weight:600}
.pad{background:repeating-linear-gradient(45deg,var(--special) 0 4px,transparent 4px 8px);
color:var(--special-ink);
padding:.12em .4em}
.special{background:var(--special);color:var(--special-ink);font-style:italic}
.image{background:var(--image);color:var(--image-ink);border:1px solid;padding:.02em .4em}
.instruction{background:var(--instruction);color:var(--instruction-ink)}
.response{background:var(--response);color:var(--response-ink)}
.box{background:var(--box);color:var(--box-ink)}.entity{background:var(--entity);color:var(--entity-ink)}
.on,.legend .on,td .on{font-weight:700;text-decoration:underline 2px;text-underline-offset:.25em;
text-decoration-skip-ink:none}
.box.on{text-decoration-style:double;text-decoration-thickness:1px}.entity.on{text-decoration-style:dotted}
.mark{font-weight:400;font-style:normal;opacity:.75;user-select:none;-webkit-user-select:none}
sup.mark{font-size:.7rem;line-height:1;margin-right:.3em}
.dot{background:radial-gradient(circle at 50% 58%,currentColor .07em,transparent .11em)}
@media(max-width:40rem){.legend{position:static}h3 code{margin-left:0}}
@media print{.legend{position:static}pre{max-height:none}section{break-inside:avoid}}
"""
