"""What the fictional company Acme adds to shipctl."""
