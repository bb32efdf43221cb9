"""The console in the browser: pages made on the server; see `console.routes`."""
