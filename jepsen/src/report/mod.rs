//! What is said of a run: a summary for a terminal and a page for a browser.

mod figures;
mod html;
mod svg;
mod text;

pub use html::html;
pub use text::summary;
