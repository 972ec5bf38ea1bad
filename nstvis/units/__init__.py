"""What every hidden unit of a network looks for (Zeiler & Fergus 2013)."""
