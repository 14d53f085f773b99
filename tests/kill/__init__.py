"""Kills processes of Phoi before and after every durable step, and looks what was lost.

``steps`` runs inside the process under test, ``launcher`` starts such processes, ``site`` is a
small hospital around them, ``job`` takes one study through it, ``invariants`` looks at what is
left, ``campaign`` plans kills and counts losses. Nothing here is known to the product.
"""
