//! The trees as a picture.
//!
//! Owns: where each peer is drawn. Does not own: the trees (`trees`), or the file.

use std::{
    f64::consts::{FRAC_PI_2, TAU},
    fmt::Write as _,
};

use planner::Place;

use super::trees::{Peer, Tree};
use crate::text;

/// Peers that are drawn, over all trees: a browser shows so many at once without effort.
const DRAWN_MAX: usize = 50_000;

/// Trees beside each other.
const COLUMNS: usize = 4;

/// The side of a tree's square, among others and alone.
const SMALL: f64 = 260.0;
const LARGE: f64 = 820.0;

/// Above the trees: the title and a line that says what is drawn.
const HEAD: f64 = 84.0;
const MARGIN: f64 = 28.0;

/// Peers of a tree drawn alone up to which each has its name beside it.
const NAMED_MAX: usize = 96;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2933}\
.t{font-size:22px;font-weight:600}.s{font-size:14px;fill:#52606d}.n{font-size:11px;fill:#52606d;\
paint-order:stroke;stroke:#fff;stroke-width:3px}\
path{fill:none;stroke-opacity:.45}.l{fill:#9fb3c8}.g{fill:none;stroke:#e4e7eb}";

/// Draws those trees that fit, from the one given if only that is wanted.
pub(super) fn draw(title: &str, trees: &[Tree], peers: &[Peer], only: Option<usize>) -> String {
    let fit = (DRAWN_MAX / peers.len().max(1)).max(1);
    let drawn: Vec<usize> = only.map_or_else(|| (0..trees.len().min(fit)).collect(), |only| vec![only]);
    let side = if drawn.len() == 1 { LARGE } else { SMALL };
    let columns = drawn.len().clamp(1, COLUMNS);
    let rows = drawn.len().div_ceil(columns).max(1);
    let width = as_f64(columns) * side + 2.0 * MARGIN;
    let height = HEAD + as_f64(rows) * side + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text class=\"t\" x=\"{MARGIN}\" y=\"42\">{title}</text>\n\
         <text class=\"s\" x=\"{MARGIN}\" y=\"66\">{}</text>\n",
        legend(drawn.len(), trees.len(), only),
        title = escaped(title),
    );
    for (at, stripe) in drawn.iter().enumerate() {
        let left = MARGIN + as_f64(at % columns) * side;
        let top = HEAD + as_f64(at / columns) * side;
        let hue = stripe * 360 / trees.len().max(1);
        let _ = writeln!(svg, "<g transform=\"translate({left:.0},{top:.0})\">");
        let panel = Panel { tree: &trees[*stripe], peers, side, colour: format!("hsl({hue},62%,46%)") };
        panel.draw(&mut svg, *stripe);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(drawn: usize, all: usize, only: Option<usize>) -> String {
    let what = match only {
        Some(stripe) => format!("stripe {stripe} of {all}"),
        None if drawn < all => format!("the first {drawn} of {all} stripes"),
        None => format!("all {all} stripes"),
    };
    format!("{what} · in the middle who has it first · coloured: gives it to others · grey: only gets it")
}

/// One tree in its square.
struct Panel<'a> {
    tree: &'a Tree,
    peers: &'a [Peer],
    side: f64,
    colour: String,
}

/// Where a peer is: how far from the middle, and in which direction.
#[derive(Clone, Copy, Default)]
struct Spot {
    radius: f64,
    angle: f64,
}

impl Spot {
    fn x(self, middle: f64) -> f64 {
        middle + self.radius * self.angle.cos()
    }

    fn y(self, middle: f64) -> f64 {
        middle + self.radius * self.angle.sin()
    }
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, stripe: usize) {
        let middle = self.side / 2.0;
        let is_large = self.side > SMALL;
        let has_names = is_large && self.peers.len() <= NAMED_MAX;
        let spots = self.spots(middle - if has_names { 90.0 } else { 22.0 });
        let order = self.tree.order();
        let mut rings: Vec<f64> = order.iter().map(|peer| spots[*peer].radius).collect();
        rings.dedup();
        for ring in rings.into_iter().filter(|ring| *ring > 0.0) {
            let _ = writeln!(svg, "<circle class=\"g\" cx=\"{middle}\" cy=\"{middle}\" r=\"{ring:.1}\"/>");
        }
        self.links(svg, &spots, middle);
        let scale = if is_large { 2.0 } else { 1.0 };
        for peer in order {
            self.peer(svg, (*peer, spots[*peer]), (middle, scale));
            if has_names {
                self.name(svg, (*peer, spots[*peer]), middle);
            }
        }
        if !is_large {
            let shape = self.tree.shape();
            let _ = writeln!(svg, "<text class=\"n\" x=\"6\" y=\"14\">{stripe}</text>");
            let _ = writeln!(
                svg,
                "<text class=\"n\" x=\"{:.0}\" y=\"14\" text-anchor=\"end\">depth {}</text>",
                self.side - 6.0,
                shape.depth
            );
        }
    }

    /// Levels are circles, and each peer has a share of its parent's arc that fits those below it.
    fn spots(&self, radius: f64) -> Vec<Spot> {
        let tree = self.tree;
        let roots: Vec<usize> = tree.roots().collect();
        // One root is in the middle; several are on the first circle.
        let middle_level = u32::from(roots.len() == 1);
        let circles = tree.shape().depth.saturating_sub(middle_level).max(1);
        let mut spots = vec![Spot::default(); self.peers.len()];
        let mut arcs = vec![(0.0, 0.0); self.peers.len()];
        share(&mut arcs, tree, &roots, (-FRAC_PI_2, TAU - FRAC_PI_2));
        for peer in tree.order() {
            let (from, to) = arcs[*peer];
            let level = tree.level(*peer) - middle_level;
            let outward = f64::from(level) / f64::from(circles);
            spots[*peer] = Spot { radius: radius * outward, angle: f64::midpoint(from, to) };
            share(&mut arcs, tree, tree.children(*peer), (from, to));
        }
        spots
    }

    fn links(&self, svg: &mut String, spots: &[Spot], middle: f64) {
        // What crosses from rack to rack is dashed.
        let (mut near, mut far) = (String::new(), String::new());
        for peer in self.tree.order() {
            for child in self.tree.children(*peer) {
                let is_far = self.peers[*peer].place != self.peers[*child].place;
                let path = if is_far { &mut far } else { &mut near };
                let (from, to) = (spots[*peer], spots[*child]);
                let halfway = f64::midpoint(from.radius, to.radius);
                // Where all is in the middle there is no direction to leave it in but the child's.
                let leave = if from.radius > 0.0 { from.angle } else { to.angle };
                let bends =
                    [Spot { radius: halfway, angle: leave }, Spot { radius: halfway, angle: to.angle }];
                let _ = write!(path, "M{:.1} {:.1}C", from.x(middle), from.y(middle));
                for spot in bends.into_iter().chain([to]) {
                    let _ = write!(path, "{:.1} {:.1} ", spot.x(middle), spot.y(middle));
                }
            }
        }
        let width = (24.0 / as_f64(self.peers.len()).sqrt()).clamp(0.4, 1.6);
        let dashes = format!(" stroke-dasharray=\"{:.1}\"", 4.0 * width);
        for (path, dashes) in [(near, ""), (far, &*dashes)] {
            if !path.is_empty() {
                let (colour, path) = (&self.colour, path.trim_end());
                let _ = writeln!(
                    svg,
                    "<path stroke=\"{colour}\" stroke-width=\"{width:.1}\"{dashes} d=\"{path}\"/>"
                );
            }
        }
    }

    fn peer(&self, svg: &mut String, (peer, spot): (usize, Spot), (middle, scale): (f64, f64)) {
        let (x, y) = (spot.x(middle), spot.y(middle));
        let size = scale * (26.0 / as_f64(self.peers.len()).sqrt()).clamp(1.0, 3.0);
        let Peer { name, place, .. } = &self.peers[peer];
        let rack =
            if *place == Place::default() { String::new() } else { format!(" · {}", text::place(place)) };
        let name = escaped(&format!("{name}{rack}"));
        let is_first = self.tree.level(peer) == 1;
        let (class, size) = match (is_first, self.tree.is_interior(peer)) {
            (true, _) => {
                (format!("fill=\"{0}\" stroke=\"#fff\" stroke-width=\"2\"", self.colour), size + 3.0 * scale)
            }
            (false, true) => (format!("fill=\"{}\"", self.colour), size + scale),
            (false, false) => ("class=\"l\"".to_owned(), size),
        };
        let _ = writeln!(
            svg,
            "<circle {class} cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{size:.1}\"><title>{name}</title></circle>"
        );
    }

    fn name(&self, svg: &mut String, (peer, spot): (usize, Spot), middle: f64) {
        let name = escaped(&self.peers[peer].name);
        if spot.radius == 0.0 {
            let y = middle + 26.0;
            let _ = writeln!(
                svg,
                "<text class=\"n\" text-anchor=\"middle\" x=\"{middle}\" y=\"{y}\">{name}</text>"
            );
            return;
        }
        let is_left = spot.angle > FRAC_PI_2;
        let outward = Spot { radius: spot.radius + 12.0, ..spot };
        let (x, y) = (outward.x(middle), outward.y(middle));
        let turn = spot.angle.to_degrees() + if is_left { 180.0 } else { 0.0 };
        let anchor = if is_left { "end" } else { "start" };
        let _ = writeln!(
            svg,
            "<text class=\"n\" text-anchor=\"{anchor}\" transform=\"translate({x:.1},{y:.1}) \
             rotate({turn:.1})\" dy=\"4\">{name}</text>"
        );
    }
}

/// Deals an arc to peers by how many are below each.
fn share(arcs: &mut [(f64, f64)], tree: &Tree, peers: &[usize], (from, to): (f64, f64)) {
    let weight = |peer: &usize| as_f64(tree.below(*peer) + 1);
    let all: f64 = peers.iter().map(weight).sum();
    let mut at = from;
    for peer in peers {
        let next = at + (to - from) * weight(peer) / all;
        arcs[*peer] = (at, next);
        at = next;
    }
}

/// A name that a stranger chose, as text of the picture.
fn escaped(text: &str) -> String {
    let clean = text::one_line(text);
    clean.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trees(count: usize, stripes: usize) -> (Vec<Tree>, Vec<Peer>) {
        let peer = |at: usize| Peer {
            name: format!("<n{at}>"),
            nic_rate: None,
            place: Place::default(),
            is_seed: false,
            done: None,
        };
        let parent = |at: usize| at.checked_sub(1).map(|at| at / 3);
        let tree = Tree::new(Some(0), (0..count).map(parent).collect());
        (vec![tree; stripes], (0..count).map(peer).collect())
    }

    #[test]
    fn every_peer_is_in_every_tree_and_within_its_square() {
        let (trees, peers) = trees(40, 16);
        let svg = draw("a & b", &trees, &peers, None);
        assert_eq!(svg.matches("<title>&lt;n").count(), 40 * 16);
        assert!(svg.contains(">a &amp; b</text>") && svg.contains("all 16 stripes"));
        for number in svg.split(" cx=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let x: f64 = number.parse().unwrap();
            assert!((0.0..=SMALL).contains(&x), "{x}");
        }
    }

    #[test]
    fn what_crosses_from_rack_to_rack_is_dashed() {
        let (trees, mut peers) = trees(4, 1);
        assert!(!draw("t", &trees, &peers, None).contains("dasharray"));
        peers[3].place.rack = "r1".to_owned();
        let svg = draw("t", &trees, &peers, None);
        assert!(svg.contains("dasharray") && svg.contains("&lt;n3&gt; · r1</title>"), "{svg}");
    }

    #[test]
    fn a_tree_alone_has_names_and_a_large_fleet_fewer_trees() {
        let (few, names) = trees(40, 16);
        assert!(draw("t", &few, &names, Some(3)).contains(">&lt;n7&gt;</text>"));
        let (many, names) = trees(10_000, 16);
        let svg = draw("t", &many, &names, None);
        assert!(svg.contains("the first 5 of 16 stripes"));
    }
}
