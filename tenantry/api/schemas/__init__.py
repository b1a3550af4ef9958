"""Models of requests and answers, a file per resource; the OpenAPI document is made of them."""
