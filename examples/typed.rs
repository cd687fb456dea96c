//! Extracts facts from a text into a Rust type; the schema is enforced while generating:
//! `cargo run --release --example typed`.

use fewbit::Model;
use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Deserialize, JsonSchema)]
struct Booking {
    #[schemars(length(min = 1, max = 40))]
    guest: String,
    nights: u8,
    room: Room,
    breakfast: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Room {
    Single,
    Double,
    Suite,
}

fn main() -> Result<(), fewbit::Error> {
    let model = Model::load("smollm2-135m-instruct")?;
    let mail = "Hello, I am Ada Lovelace. I would like a double room for 3 nights, with breakfast please.";
    let prompt = format!("Extract the booking as JSON with guest, nights, room and breakfast.\n\n{mail}");

    let booking: Booking = model.generate(prompt).templated().temperature(0.0).max_tokens(200).json()?;
    let Booking { guest, nights, room, breakfast } = booking;
    println!("{guest}: {nights} nights in a {room:?} room, breakfast: {breakfast}");
    Ok(())
}
