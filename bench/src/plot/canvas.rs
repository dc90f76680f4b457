//! What all pictures share: size, colours, text, axes. Does not own what they show.
//!
//! Pictures have no background of their own and their greys have contrast on white and on black, since readers see them
//! on either.

use anyhow::anyhow;
use plotters::{
    coord::{Shift, cartesian::Cartesian2d, types::RangedCoordf64},
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// Places are whole numbers to plotters; a unit of a quarter of a pixel keeps lines smooth.
const UNITS: i32 = 4;
/// Pixels.
const WIDTH: i32 = 900;

pub(crate) const GREY: RGBColor = RGBColor(0x72, 0x7c, 0x86);
pub(crate) const BLUE: RGBColor = RGBColor(0x3b, 0x82, 0xd6);
pub(crate) const TEAL: RGBColor = RGBColor(0x2a, 0xa1, 0x98);
/// For systems that have no colour of their own, in turn.
const OTHERS: [RGBColor; 4] =
    [RGBColor(0x8e, 0x6c, 0xc0), TEAL, RGBColor(0xc2, 0x63, 0x9b), RGBColor(0x7a, 0x94, 0x2e)];

/// A system has the same colour in every picture.
pub(crate) fn colour(name: &str, index: usize) -> RGBColor {
    match name.split([' ', '/']).next().unwrap_or_default() {
        "modelctl" => BLUE,
        "registry" => RGBColor(0xd0, 0x5a, 0x4e),
        "bittorrent" => RGBColor(0xc4, 0x8a, 0x1a),
        "chain" => RGBColor(0x4b, 0x9e, 0x5f),
        _ => OTHERS[index % OTHERS.len()],
    }
}

/// Where text stands to its place.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Left,
    Middle,
    Right,
}

/// Pixels.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) left: i32,
    pub(crate) right: i32,
    pub(crate) top: i32,
    pub(crate) bottom: i32,
}

impl Place {
    /// The usual place below the title; `right` is room for labels.
    pub(crate) fn below_title(height: i32, right: i32) -> Self {
        Self { left: 70, right: WIDTH - right, top: 80, bottom: height - 50 }
    }
}

type Area<'a, C> = DrawingArea<SVGBackend<'a>, C>;

/// A picture under construction.
pub(crate) struct Canvas<'a>(Area<'a, Shift>);

/// Draws a picture of that height with a title, and gives its text.
pub(crate) fn picture(
    height: i32,
    title: &str,
    subtitle: &str,
    draw: impl FnOnce(&Canvas<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    let size = ((WIDTH * UNITS).unsigned_abs(), (height * UNITS).unsigned_abs());
    {
        let canvas = Canvas(SVGBackend::with_string(&mut svg, size).into_drawing_area());
        canvas.text((20, 28), title, &Look { size: 19, bold: true, ..Look::default() })?;
        canvas.text((20, 50), subtitle, &Look { size: 13, ..Look::default() })?;
        draw(&canvas)?;
        canvas.0.present().map_err(failed)?;
    }
    let units = format!("width=\"{}\" height=\"{}\"", size.0, size.1);
    let pixels = format!("width=\"{WIDTH}\" height=\"{height}\" role=\"img\"");
    Ok(svg.replacen(&units, &pixels, 1))
}

/// How text looks.
pub(crate) struct Look {
    pub(crate) size: i32,
    pub(crate) colour: RGBColor,
    pub(crate) side: Side,
    pub(crate) bold: bool,
}

impl Default for Look {
    fn default() -> Self {
        Self { size: 13, colour: GREY, side: Side::Left, bold: false }
    }
}

impl<'a> Canvas<'a> {
    /// Text at pixels, centred in height.
    pub(crate) fn text(&self, (x, y): (i32, i32), text: &str, look: &Look) -> anyhow::Result<()> {
        let side = match look.side {
            Side::Left => HPos::Left,
            Side::Middle => HPos::Center,
            Side::Right => HPos::Right,
        };
        let style = if look.bold { FontStyle::Bold } else { FontStyle::Normal };
        let font =
            FontDesc::new(FontFamily::Name("system-ui, sans-serif"), f64::from(look.size * UNITS), style);
        let style = TextStyle::from(font).color(&look.colour).pos(Pos::new(side, VPos::Center));
        self.0.draw(&Text::new(text.to_owned(), (x * UNITS, y * UNITS), style)).map_err(failed)
    }

    /// The space of data in a place: x and y from one value to another.
    pub(crate) fn frame(&self, place: Place, x: (f64, f64), y: (f64, f64)) -> Frame<'_, 'a> {
        let horizontal = place.left * UNITS..place.right * UNITS;
        let vertical = place.bottom * UNITS..place.top * UNITS;
        let spec =
            Cartesian2d::<RangedCoordf64, RangedCoordf64>::new(x.0..x.1, y.0..y.1, (horizontal, vertical));
        Frame { canvas: self, area: self.0.clone().apply_coord_spec(spec), place, x, y }
    }
}

/// Where data is drawn.
pub(crate) struct Frame<'c, 'a> {
    canvas: &'c Canvas<'a>,
    area: Area<'a, Cartesian2d<RangedCoordf64, RangedCoordf64>>,
    place: Place,
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame<'_, '_> {
    /// A line through points; its width is in tenths of a pixel.
    pub(crate) fn line(&self, points: Vec<(f64, f64)>, colour: RGBAColor, tenths: i32) -> anyhow::Result<()> {
        let style = colour.stroke_width((tenths * UNITS / 10).unsigned_abs());
        self.area.draw(&PathElement::new(points, style)).map_err(failed)
    }

    /// A dashed line from one point to another.
    pub(crate) fn dashes(&self, from: (f64, f64), to: (f64, f64)) -> anyhow::Result<()> {
        let style = GREY.stroke_width((2 * UNITS).unsigned_abs());
        let line = DashedPathElement::new([from, to], 7 * UNITS, 5 * UNITS, style);
        self.area.draw(&line).map_err(failed)
    }

    /// A dot.
    pub(crate) fn dot(&self, at: (f64, f64), colour: RGBColor) -> anyhow::Result<()> {
        self.area.draw(&Circle::new(at, 4 * UNITS, colour.filled())).map_err(failed)
    }

    /// A filled cell between two corners.
    pub(crate) fn cell(&self, corners: [(f64, f64); 2], colour: RGBAColor) -> anyhow::Result<()> {
        self.area.draw(&Rectangle::new(corners, colour.filled())).map_err(failed)
    }

    /// Text beside a point, moved by pixels.
    pub(crate) fn text(&self, at: (f64, f64), by: (i32, i32), text: &str, look: &Look) -> anyhow::Result<()> {
        let (x, y) = self.pixels(at);
        self.canvas.text((x + by.0, y + by.1), text, look)
    }

    /// Where a point is.
    pub(crate) fn pixels(&self, at: (f64, f64)) -> (i32, i32) {
        let (x, y) = self.area.map_coordinate(&at);
        (x / UNITS, y / UNITS)
    }

    /// Numbers below, with the unit at the end of the axis.
    pub(crate) fn x_axis(&self, ticks: &[(f64, String)], name: &str) -> anyhow::Result<()> {
        self.line(vec![(self.x.0, self.y.0), (self.x.1, self.y.0)], GREY.mix(0.6), 10)?;
        for (at, label) in ticks {
            self.text((*at, self.y.0), (0, 15), label, &Look { side: Side::Middle, ..Look::default() })?;
        }
        let middle = i32::midpoint(self.place.left, self.place.right);
        self.canvas.text(
            (middle, self.place.bottom + 36),
            name,
            &Look { side: Side::Middle, ..Look::default() },
        )
    }

    /// Numbers on the left, each with a faint line.
    pub(crate) fn y_axis(&self, ticks: &[(f64, String)]) -> anyhow::Result<()> {
        for (at, label) in ticks {
            self.line(vec![(self.x.0, *at), (self.x.1, *at)], GREY.mix(0.22), 10)?;
            self.text((self.x.0, *at), (-9, 0), label, &Look { side: Side::Right, ..Look::default() })?;
        }
        Ok(())
    }

    /// Labels on the right of where lines end, moved apart where they would overlap.
    pub(crate) fn end_labels(&self, mut ends: Vec<((f64, f64), String, RGBColor)>) -> anyhow::Result<()> {
        const APART: i32 = 17;
        ends.sort_by(|one, other| other.0.1.total_cmp(&one.0.1));
        let mut free = i32::MIN;
        for (at, label, colour) in ends {
            let (x, y) = self.pixels(at);
            let y = y.max(free);
            free = y + APART;
            self.canvas.text((x + 10, y), &label, &Look { colour, bold: true, ..Look::default() })?;
        }
        Ok(())
    }
}

/// Round numbers from 0 to at most `max`, about six of them.
pub(crate) fn round_ticks(max: f64) -> Vec<(f64, String)> {
    let about = max / 6.0;
    let power = 10_f64.powf(about.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= about);
    let step = step.unwrap_or(10.0 * power);
    let places = usize::from(step < 1.0);
    std::iter::successors(Some(0.0), |at| Some(at + step))
        .take_while(|at| *at <= max * 1.0001)
        .map(|at| (at, format!("{at:.places$}")))
        .collect()
}

/// plotters' errors borrow from nothing but say it in a type that anyhow does not take.
#[expect(clippy::needless_pass_by_value, reason = "what map_err gives it")]
fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow!("draw: {error}")
}
