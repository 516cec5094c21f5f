//! The page around the charts: its style, tables, named figures.

use super::Escaped;

/// Content security policy: only the page's own styles, so injected content could load and run nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// A whole page around `body`.
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        Escaped(title)
    )
}

/// Named figures in a row.
pub fn facts(facts: &[(&str, String)]) -> String {
    let mut html = String::from("<dl class=\"facts\">");
    for (name, value) in facts {
        html.push_str(&format!("<div><dt>{}</dt><dd>{}</dd></div>", Escaped(name), Escaped(value)));
    }
    html.push_str("</dl>\n");
    html
}

/// A table; columns whose heading begins with `#` hold numbers, those with `=` short texts of one line.
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let class = |i: usize| match headings[i].chars().next() {
        Some('#') => " class=\"n\"",
        Some('=') => " class=\"one\"",
        _ => "",
    };
    let mut html = String::from("<div class=\"scroll\"><table><thead><tr>");
    for (i, heading) in headings.iter().enumerate() {
        html.push_str(&format!("<th{}>{}</th>", class(i), Escaped(heading.trim_start_matches(['#', '=']))));
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            html.push_str(&format!("<td{}>{}</td>", class(i), Escaped(cell)));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

const STYLE: &str = "
:root { color-scheme: light dark; --page: #f6f6f3; --card: #ffffff; --line: #e3e3dd; --ink: #1d1d1b;
  --soft: #6a6a64; --bar: #2a6fc4; --bar-hover: #174f96; --hidden: #b4b1a6; --target: #c8501e;
  --third: #2e8555; }
@media (prefers-color-scheme: dark) { :root { --page: #161614; --card: #201f1d; --line: #393834;
  --ink: #eeede8; --soft: #a5a39b; --bar: #5c9fe8; --bar-hover: #8fc0f5; --hidden: #6a6860; --target: #f08a55;
  --third: #5fbf8b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 19px; margin: 48px 0 4px; padding-top: 20px; border-top: 1px solid var(--line); font-weight: 650; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 4px 0; }
.soft, figcaption p { color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; }
a { color: var(--bar); }
.facts { display: flex; flex-wrap: wrap; gap: 12px 32px; margin: 14px 0 18px; }
.facts dt { color: var(--soft); font-size: 12.5px; }
.facts dd { margin: 0; font-size: 19px; font-weight: 600; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 16px; }
figure, .card { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px 8px; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; margin-top: 8px; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; font-variant-numeric: tabular-nums; }
svg text.strong { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; }
.base { stroke: var(--soft); stroke-width: 1; }
.bar { fill: var(--bar); }
.hit { fill: transparent; }
g:hover > .bar { fill: var(--bar-hover); }
g:hover > .hit { fill: var(--soft); fill-opacity: .12; }
.curve { fill: none; stroke: var(--bar); stroke-width: 2; stroke-linejoin: round; }
.dot { fill: var(--bar); stroke: var(--card); stroke-width: 1.5; }
.key { fill: var(--bar); }
.curve.line1 { stroke: var(--target); } .dot.line1, .key.line1 { fill: var(--target); }
.curve.line2 { stroke: var(--third); } .dot.line2, .key.line2 { fill: var(--third); }
.curve.line3 { stroke: var(--hidden); } .dot.line3, .key.line3 { fill: var(--hidden); }
.good, .bad { display: inline-block; padding: 2px 10px; border-radius: 10px; font-weight: 600; color: var(--card); }
.good { background: var(--third); } .bad { background: var(--target); }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.one { white-space: nowrap; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 0 32px;
  margin-top: 20px; }
.visible { fill: var(--bar); }
.hidden { fill: var(--hidden); }
.later { fill: none; stroke: var(--hidden); stroke-width: 1.2; }
.target { fill: var(--target); }
.batch { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.session { fill: var(--line); fill-opacity: .45; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 12.5px; color: var(--soft); }
.legend svg { display: inline-block; width: 14px; height: 14px; margin: 0 6px -2px 0; }
";
