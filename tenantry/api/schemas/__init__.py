"""What comes in and what goes out, a file a resource; the OpenAPI document is made of it."""
