mod replay;
mod simulate;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|a| a == "sim") {
        simulate::main(&arguments[1..]);
        return;
    }
    for path in &arguments {
        replay::replay(path);
    }
}
