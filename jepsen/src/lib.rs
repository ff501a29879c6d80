//! Tidewater jepsen.
