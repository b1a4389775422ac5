"""Lexical knowledge for words of dialogues: knowledge base, retriever, index, annotations.

Section 4 of "Lexical Knowledge Internalization for Neural Dialog Generation" (ACL 2022). Training reads what
`annotations` says and nothing else of this package.
"""
