"""The review page: worklist, CT viewer, review, operations. Server-rendered, two languages."""
